// The list with its form: what is found, and the unit that the reader is at.
const form = byId("filters");

function showStatus() {
  const { length } = found;
  const count = length === COUNT ? `${WHOLE.format(COUNT)} units` : `${WHOLE.format(length)} of ${WHOLE.format(COUNT)} units`;
  byId("found").textContent = isReading() ? `${count}; reading the texts …` : count;
  const more = columns.length - shown.length;
  byId("more").textContent = more ? `${WHOLE.format(more)} more column${more > 1 ? "s" : ""} in a wider window; a unit’s page has them all` : "";
  byId("nothing").hidden = length > 0;
  byId("nothing").textContent = isReading() ? "Reading the texts …" : "No unit matches these filters.";
  box.querySelector("table").setAttribute("aria-rowcount", String(length + 1));
}

function showList() {
  const before = found[state.current];
  found = findUnits();
  state.current = Math.max(0, found.indexOf(before));
  showOrder();
  showStatus();
  redrawRows();
}

function fillForm() {
  for (const key of ["kind", "layer", "label", "show"]) form.elements[key].value = state[key];
  if (form.elements.q.value.trim().toLowerCase() !== state.q) form.elements.q.value = state.q;
  form.elements.sort.replaceChildren(...columns.flatMap(({ id, title, unit, text }) => [true, false].map((descending) => {
    const sign = descending ? "-" : "";
    const way = text ? (descending ? "Z to A" : "A to Z") : (descending ? "highest first" : "lowest first");
    return optionOf(sign + id, `${title}${unit ? `, ${unit}` : ""}: ${id === "unit" ? (descending ? "last first" : "first first") : way}`);
  })));
  form.elements.sort.value = (state.descending ? "-" : "") + state.sort;
}

function optionOf(value, text) {
  const option = make("option", "", text);
  option.value = value;
  return option;
}

function fillOptions() {
  const distinct = (values) => [...new Set(values)];
  const kinds = distinct(data.modules.map(([, , kind]) => kind));
  const layers = distinct(data.modules.map(([, layer]) => layer)).filter((layer) => layer !== null).sort((a, b) => a - b);
  form.elements.kind.append(...kinds.map((kind) => optionOf(kind, kind)));
  form.elements.layer.append(...layers.map((layer) => optionOf(String(layer), String(layer))));
  if (data.kept !== null) {
    form.elements.show.lastElementChild.before(optionOf("silent", "silent where kept"), optionOf("heard", "not silent where kept"));
  }
  form.elements.kind.parentElement.hidden = kinds.length < 2;
  form.elements.layer.parentElement.hidden = layers.length < 2;
}

function fillLabels() {
  const { labels } = dataset();
  form.elements.label.replaceChildren(optionOf("", "all"), ...labels.map((label) => optionOf(words[label], words[label])));
  form.elements.label.parentElement.hidden = labels.length < 2;
  if (!labels.some((label) => words[label] === state.label)) state.label = "";
}

function drawList() {
  drawColumns();
  fillLabels();
  fillForm();
  const switches = form.querySelector(".datasets");
  switches.hidden = data.datasets.length < 2;
  switches.replaceChildren(...(switches.hidden ? [] : [datasetSwitch()]));
  byId("list-gate").hidden = isOpen();
  byId("list-gate").replaceChildren(...(isOpen() ? [] : [gate()]));
  if (state.q) readTexts();
  showList();
}

function moveTo(place) {
  if (!found.length) return;
  const before = rows.get(found[state.current]);
  if (before) before.classList.remove("current");
  state.current = Math.min(Math.max(0, place), found.length - 1);
  const isScroller = box.scrollHeight > box.clientHeight + 1 && getComputedStyle(box).overflowY !== "visible";
  const frame = isScroller ? box.getBoundingClientRect() : { top: 0, bottom: innerHeight };
  const top = body.getBoundingClientRect().top + state.current * rowHeight;
  const least = frame.top + (isScroller ? byId("columns").offsetHeight : 0);
  const most = frame.bottom - (isScroller ? 0 : byId("marked").offsetHeight);
  const by = top < least ? top - least : top + rowHeight > most ? top + rowHeight - most : 0;
  if (by) (isScroller ? box : window).scrollBy({ top: by, behavior: "instant" });
  drawRows();
  rows.get(found[state.current]).querySelector("a").focus({ preventScroll: true });
}

function turnTo(by) {
  const place = found.indexOf(state.unit) + by;
  if (!(place in found)) return;
  state.unit = found[place];
  state.current = place;
  remember();
  showUnit();
}
