// Marked units, and the command that takes them out.
function toggleMark(unit) {
  if (!marked.delete(unit)) marked.add(unit);
  for (const button of document.querySelectorAll(`[data-mark="${unit}"]`)) showStar(button, unit);
  for (const [of, row] of rows) if (of === unit) showStar(row.querySelector(".star"), unit);
  if (state.show === "marked" && state.unit === null) showList();
  showMarked();
  remember();
}

function showMarked() {
  const bar = byId("marked");
  bar.hidden = !marked.size;
  if (!marked.size) {
    bar.replaceChildren();
    return;
  }
  const units = [...marked].sort((a, b) => a - b);
  const clear = makeButton("quiet", "Clear", "Take all marks off", () => {
    marked.clear();
    if (state.show === "marked") state.show = "";
    refresh();
  });
  bar.replaceChildren(make("strong", "", `${WHOLE.format(units.length)} marked`), data.prunable ? commandLine(units) : "", clear);
}
