// What is shown, as the address and the reader ask.
let shownUnit = null;
let listScroll = [0, 0]; // of the list in its box, of the page

/** Everything anew, after the state has changed. */
function refresh() {
  const focused = document.activeElement && document.activeElement.closest("[data-column], .switch");
  if (state.unit === null) drawList();
  else drawUnit();
  remember();
  if (focused) focusAgain(focused);
  showMarked();
}

function focusAgain(before) { // the control that was used has been made anew
  const { column } = before.dataset;
  const view = byId(state.unit === null ? "list-view" : "unit-view");
  const again = column ? byId("columns").querySelector(`[data-column="${column}"] button`) : view.querySelector(".switch [aria-pressed=true]");
  if (again) again.focus();
}

const toList = () => { location.hash = listAddress(); };

function showUnit() {
  const { unit } = state;
  whole.then(() => {
    if (state.unit !== unit) return;
    drawUnit();
    scrollTo({ top: 0, behavior: "instant" });
    byId("unit-title").focus({ preventScroll: true });
  });
}

// The address.

function readAddress(parts) {
  const named = data.datasets.findIndex(({ name }) => name === parts.get("data"));
  state.dataset = Math.max(0, named);
  state.unit = placeOf.get(parts.get("unit")) ?? null;
  if (state.unit !== null) return;
  for (const key of ["kind", "layer", "label", "show"]) state[key] = parts.get(key) || "";
  state.q = (parts.get("q") || "").trim().toLowerCase();
  const sort = parts.get("sort") || "-effect";
  state.descending = sort.startsWith("-");
  state.sort = sort.replace(/^-/, "");
}

function followAddress() {
  const parts = new URLSearchParams(location.hash.slice(1).replace(/\+/g, "%2B"));
  const wasList = shownUnit === null;
  if (wasList) listScroll = [box.scrollTop, scrollY];
  readAddress(parts);
  remember(); // the marks
  shownUnit = state.unit;
  byId("list-view").hidden = state.unit !== null;
  byId("unit-view").hidden = state.unit === null;
  document.body.classList.toggle("reads-unit", state.unit !== null);
  document.title = state.unit === null ? pageTitle : `${shortName(state.unit)} – ${pageTitle}`;
  if (state.unit !== null) {
    if (!columns.length) { // the page was opened with this unit: the list is not there yet
      drawColumns();
      found = findUnits();
    }
    state.current = Math.max(0, found.indexOf(state.unit));
    showUnit();
  } else {
    backToList(wasList);
  }
  showMarked();
}

function backToList(wasList) {
  const { current } = state;
  drawList();
  if (wasList) return;
  box.scrollTop = listScroll[0];
  scrollTo({ top: listScroll[1], behavior: "instant" });
  state.current = Math.min(current, Math.max(0, found.length - 1));
  drawRows();
  moveTo(state.current);
}

// The start.

const pageTitle = document.title;
history.scrollRestoration = "manual";
let waiting;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", ({ target }) => {
  clearTimeout(waiting); // one search for a word, not one a letter
  waiting = setTimeout(() => {
    if (target.name === "sort") {
      state.descending = target.value.startsWith("-");
      state.sort = target.value.replace(/^-/, "");
    } else {
      state[target.name] = target.name === "q" ? target.value.trim().toLowerCase() : target.value;
    }
    state.current = 0;
    box.scrollTop = 0;
    refresh();
  }, target.name === "q" ? 120 : 0);
});
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-unit]");
  if (!row || getSelection().toString()) return;
  state.current = found.indexOf(Number(row.dataset.unit));
  if (!event.target.closest("a, button")) location.hash = unitAddress(Number(row.dataset.unit));
});
document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-mark]");
  if (button) toggleMark(Number(button.dataset.mark));
  if (target.closest("[data-keys]")) byId("keys").showModal();
});
body.addEventListener("focusin", ({ target }) => {
  const place = found.indexOf(Number(target.closest("tr").dataset.unit));
  if (place === state.current) return;
  state.current = place;
  drawRows();
});
const drawInList = () => { if (state.unit === null) drawRows(); };
document.addEventListener("scroll", drawInList, { capture: true, passive: true }); // comes once a frame
new ResizeObserver(() => {
  if (state.unit === null && columns.length) fitColumns();
  drawInList();
  measureRows();
}).observe(box);
window.addEventListener("keydown", onKey);
window.addEventListener("hashchange", followAddress);
for (const name of ["beforeprint", "afterprint"]) {
  window.addEventListener(name, () => {
    isPrinting = name === "beforeprint";
    drawInList();
  });
}
form.elements.q.addEventListener("focus", readTexts); // ahead of the first letter
fillOptions();
for (const unit of (new URLSearchParams(location.hash.slice(1)).get("marked") || "").split(",")) {
  if (unit && Number(unit) in names) marked.add(Number(unit));
}
followAddress();
performance.mark("list");
