// The keyboard.
function inList({ key }) {
  const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[key];
  const { activeElement } = document;
  if (by && (key.length === 1 || activeElement === document.body || box.contains(activeElement))) {
    moveTo(body.contains(activeElement) ? state.current + by : state.current); // at first to where the reader was
  } else if (key === "m" && found.length) {
    toggleMark(found[state.current]);
  } else if (key === "Enter" && found.length && !activeElement.closest("a, button, summary")) {
    location.hash = unitAddress(found[state.current]);
  } else {
    return false;
  }
  return true;
}

function inUnit({ key }) {
  const scrolls = document.activeElement.closest(".box, code"); // to the side, with the arrows
  const by = { j: 1, k: -1, ArrowRight: scrolls ? 0 : 1, ArrowLeft: scrolls ? 0 : -1 }[key];
  if (by) turnTo(by);
  else if (key === "m") toggleMark(state.unit);
  else if (key === "Escape") toList();
  else return false;
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const field = event.target.closest("input, select, textarea");
  if (field) {
    if (event.key === "Escape" || (event.key === "Enter" && field.type === "search")) {
      event.preventDefault();
      moveTo(state.current);
    }
    return;
  }
  if (event.key === "?") byId("keys").showModal();
  else if (event.key === "/") toSearch();
  else if (!(state.unit === null ? inList(event) : inUnit(event))) return;
  event.preventDefault();
}

function toSearch() {
  const focus = () => form.elements.q.select();
  if (state.unit === null) {
    focus();
    return;
  }
  window.addEventListener("hashchange", focus, { once: true });
  toList();
}
