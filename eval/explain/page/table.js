// The list: a table of which only the rows in sight are there.
const OVER = 12; // rows above and below those in sight
const PRINTED = 300;
const box = byId("box");
const body = byId("rows");
const gaps = [make("tr", "gap"), make("tr", "gap")];
for (const gap of gaps) gap.setAttribute("aria-hidden", "true");
const rows = new Map(); // by unit
let found = [];
let rowHeight = 44;
let isPrinting = false;

function columnsOf() {
  const { columns, labels, strongest, chance } = dataset();
  const list = [
    { id: "unit", title: "unit", width: 10, text: names, order: (unit) => unit },
    { id: "tokens", title: "top tokens", width: 10.5, text: true, order: firstToken, help: "the tokens on which its mean activation is strongest" },
    { id: "firing", title: "fires", unit: "%", values: columns.firing, show: percent, help: "share of tokens on which it is not exactly 0" },
    ...silenceColumns(),
    { id: "effect", title: "effect", unit: "%", width: 5.2, values: columns.effect, show: effect, help: "size of what it adds to its module’s output, in percent of that output’s" },
    { id: "max", title: data.signed ? "highest" : "max", width: 5.2, values: columns.max, show: short, help: "highest activation; not on one scale between units" },
  ];
  if (data.signed) list.push({ id: "min", title: "lowest", width: 5.2, values: columns.min, show: short, help: "lowest activation; not on one scale between units" });
  if (labels.length) {
    const among = `of the ${strongest} texts with the ${data.signed ? "highest" : "strongest"} mean activation`;
    list.push(
      { id: "consistency", title: "consistency", unit: "%", width: 7, values: columns.consistency, show: percent, help: `share ${among} that have the most frequent label; ${percent(chance)} % by chance` },
      { id: "label", title: "label", width: 7, text: true, order: labelOf, help: `the most frequent label ${among}, where q of its information is below 0.05` },
      { id: "information", title: "information", unit: "bits", width: 7, values: columns.information, show: fixed(3), help: "mutual information of its mean activation on a text and the text’s label" },
    );
  }
  if (columns.probe) {
    list.push({ id: "probe", title: "probe", unit: "%", width: 5.2, isMore: true, values: columns.probe, show: percent, help: "balanced accuracy of a probe on this unit alone, for the label that it tells best; 50 % by chance" });
  }
  if (columns.faithfulness) {
    list.push({ id: "faithfulness", title: "faithfulness", unit: "r", width: 7, isMore: true, values: columns.faithfulness, show: fixed(2), help: "correlation over prompts of how strongly it fires and of what taking it out does there (square root of the KL of the next token)" });
  }
  data.measures.forEach(([title, unit, of], place) => list.push(
    { id: `ablation-${place}`, title: `${of} ${title}`, unit, lead: "taken out:", width: 6, isMore: true, values: data.changes[place], show: shortChange, help: `change of ${title} on ${of} when the unit is taken out` }));
  data.contrasts.forEach(({ a, b, auc }, place) => list.push(
    { id: `contrast-${place}`, title: contrastTitle(a, b), unit: "AUC", width: 6, isMore: true, values: auc, show: fixed(2), help: `chance that a text of ${a} excites it more than one of ${b}` }));
  return list;
}

/** Beside the share of tokens on which a unit fires here: that of kept prompts, and there that of the first data set. */
function silenceColumns() {
  if (data.kept === null) return [];
  const isKept = state.dataset === data.kept;
  const { name, columns } = data.datasets[isKept ? 0 : data.kept];
  const title = isKept ? name : "on kept prompts";
  return [{ id: "kept", title, unit: "%", width: 5.2, values: columns.firing, show: percent, help: `share of tokens of ${isKept ? name : "kept prompts"} on which it is not exactly 0` }];
}

function contrastTitle(a, b) {
  const set = a.slice(0, a.lastIndexOf(":") + 1); // of texts with a label; empty where a whole set is compared
  return set && b.startsWith(set) ? `${a} over ${b.slice(set.length)}` : `${a} over ${b}`;
}

function effect(value) {
  if (value === null) return NOTHING;
  return value > 0 && value < 0.00005 ? "<0.01" : (100 * value).toFixed(value >= 0.0995 || value === 0 ? 1 : 2);
}

function firstToken(unit) {
  const first = isOpen() ? dataset().top[unit][0][0] : undefined;
  return first === undefined ? null : words[first].trim().toLowerCase();
}

let columns = [];
let shown = []; // those that have room
const WIDE = 70; // rem; a narrower box scrolls to the side
const widthOf = (some) => some.reduce((sum, { width = 4.8 }) => sum + width, 2.4);

/** All columns, or as many as a wide box has room for: the last ablations and contrasts stay out, but not the one that
 * orders the list. */
function fitting() {
  const room = box.clientWidth / parseFloat(getComputedStyle(document.documentElement).fontSize);
  const fits = [...columns];
  for (let place = fits.length - 1; room >= WIDE && place >= 0 && widthOf(fits) > room; place--) {
    if (fits[place].isMore && fits[place].id !== state.sort) fits.splice(place, 1);
  }
  return fits;
}

function fitColumns() {
  const fits = fitting();
  if (fits.length === shown.length && fits.every(({ id }, place) => id === shown[place].id)) return;
  drawColumns();
  showStatus();
  redrawRows();
}

// Filtering and sorting.

function compare(a, b) {
  return typeof a === "string" ? (a < b ? -1 : a > b ? 1 : 0) : a - b;
}

/** The units that fit, in the order asked for; what has no value comes last either way. */
function findUnits() {
  const column = columns.find(({ id }) => id === state.sort) || columns[0];
  const key = column.order || ((unit) => column.values[unit]);
  const sign = state.descending ? -1 : 1;
  const keyed = [];
  for (let unit = 0; unit < COUNT; unit++) if (fits(unit)) keyed.push([key(unit), unit]);
  keyed.sort(([a, x], [b, y]) => {
    if (a === null || b === null) return (a === null) - (b === null) || x - y;
    return sign * compare(a, b) || x - y;
  });
  return keyed.map(([, unit]) => unit);
}

// Rows.

function tokensOf(unit) {
  if (!isOpen()) return [make("span", "pale", "hidden")];
  const hit = snippet(unit);
  if (hit) {
    const [before, at, after] = hit.map((text) => (text ? tokenNodes(text, false) : []));
    return [make("span", "snippet", ...before, make("mark", "", ...at), ...after)];
  }
  const [high, low = []] = dataset().top[unit];
  if (!high.length && !low.length) return [make("span", "pale", isDead(unit) ? "dead" : NOTHING)];
  const each = low.length ? 2 : 4;
  return [
    ...high.slice(0, each).map((token) => chip(words[token], "high")),
    ...low.slice(0, each).map((token) => chip(words[token], "low")),
  ];
}

function cellOf(column, unit) {
  if (column.id === "tokens") return make("td", "words tokens", make("div", "", ...tokensOf(unit)));
  if (column.id === "label") {
    const label = labelOf(unit);
    return label === null ? withTitle(make("td", "words pale", NOTHING), isDead(unit) ? "" : `q ${probability(dataset().columns.q[unit])}: no label is clear of chance`) : make("td", "words", withTitle(make("span", "tag", label), label));
  }
  const value = column.values[unit];
  const cell = make("td", value ? "" : "pale", make("span", "of", `${column.title} `), column.show(value));
  if (column.unit) cell.append(make("span", "of", column.unit === "%" ? " %" : ` ${column.unit}`));
  if (column.id === "firing" && value && !data.signed) {
    const bar = make("span", "share");
    bar.style.setProperty("--share", value);
    cell.append(bar);
  }
  return cell;
}

function star(unit, className) {
  const button = make("button", className);
  button.type = "button";
  button.dataset.mark = unit;
  showStar(button, unit);
  return button;
}

function showStar(button, unit) {
  button.textContent = marked.has(unit) ? "★" : "☆";
  button.title = marked.has(unit) ? "Take the mark off (m)" : "Mark (m)";
  button.setAttribute("aria-label", `Mark ${names[unit]}`);
  button.setAttribute("aria-pressed", String(marked.has(unit)));
}

function rowOf(place) {
  const unit = found[place];
  if (!rows.has(unit)) rows.set(unit, makeRow(unit));
  const row = rows.get(unit);
  row.setAttribute("aria-rowindex", place + 2);
  row.classList.toggle("current", place === state.current);
  return row;
}

function makeRow(unit) {
  const link = withTitle(make("a", "", shortName(unit)), names[unit]);
  link.href = unitAddress(unit);
  const head = make("th", "name", link);
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  const row = make("tr", isDead(unit) ? "dead" : "", make("td", "marks", star(unit, "star")), head);
  for (const column of shown.slice(1)) {
    const cell = cellOf(column, unit);
    cell.classList.toggle("sorted", column.id === state.sort);
    cell.dataset.column = column.id;
    row.append(cell);
  }
  for (const cell of row.querySelectorAll("td")) cell.setAttribute("role", "cell");
  row.setAttribute("role", "row");
  row.dataset.unit = unit;
  return row;
}

function inSight() {
  if (isPrinting) return [0, Math.min(found.length, PRINTED)];
  const frame = box.getBoundingClientRect();
  const top = gaps[0].getBoundingClientRect().top;
  const from = (Math.max(frame.top, 0) - top) / rowHeight;
  const to = (Math.min(frame.bottom, innerHeight) - top) / rowHeight;
  const start = Math.min(Math.max(0, Math.floor(from) - OVER), found.length);
  return [start, Math.min(found.length, Math.max(Math.ceil(to) + OVER, start))];
}

/** Put the rows in sight in; those that are there already stay, and keep the focus. */
function drawRows() {
  const [start, end] = inSight();
  const wanted = [];
  for (let place = start; place < end; place++) wanted.push(rowOf(place));
  const stay = new Set(wanted);
  for (const row of [...body.children]) {
    if (stay.has(row) || gaps.includes(row)) continue;
    if (row.contains(document.activeElement)) box.focus({ preventScroll: true });
    row.remove();
  }
  let next = gaps[0].nextSibling;
  for (const row of wanted) {
    if (row === next) next = row.nextSibling;
    else body.insertBefore(row, next);
  }
  gaps[0].style.height = `${start * rowHeight}px`;
  gaps[1].style.height = `${(found.length - end) * rowHeight}px`;
}

function measureRows() {
  const row = body.querySelector("tr:not(.gap)");
  if (row && row.offsetHeight && row.offsetHeight !== rowHeight) {
    rowHeight = row.offsetHeight;
    drawRows();
  }
}

function redrawRows() {
  rows.clear();
  body.replaceChildren(...gaps);
  drawRows();
  measureRows();
}

// The head.

function drawColumns() {
  columns = columnsOf();
  if (!columns.some(({ id }) => id === state.sort)) state.sort = "effect";
  shown = fitting();
  const widths = [make("col", ""), ...shown.map(() => make("col", ""))];
  widths[0].style.width = "2.4rem";
  shown.forEach(({ id, width = 4.8 }, place) => { if (id !== "tokens") widths[place + 1].style.width = `${width}rem`; });
  byId("widths").replaceChildren(...widths);
  body.parentElement.style.setProperty("--least", `${widthOf(shown)}rem`);
  const mark = make("th", "marks", make("span", "aside", "marked"));
  byId("columns").replaceChildren(mark, ...shown.map(headOf));
  for (const head of byId("columns").children) {
    head.scope = "col";
    head.setAttribute("role", "columnheader");
  }
  showOrder();
}

function headOf(column) {
  const button = makeButton("", "", "", () => sortBy(column));
  if (column.lead) button.append(make("small", "", column.lead), " ");
  button.append(column.title.replace(/:/g, ":\u200b"), " "); // where a long name may break
  if (column.unit) button.append(make("small", "", column.unit));
  if (column.help) button.title = column.help;
  const head = make("th", column.text ? `words ${column.id}` : "", button);
  head.dataset.column = column.id;
  return head;
}

function showOrder() {
  for (const head of byId("columns").querySelectorAll("[data-column]")) {
    const isSorted = head.dataset.column === state.sort;
    if (isSorted) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function sortBy({ id, text }) {
  if (state.sort === id) state.descending = !state.descending;
  else Object.assign(state, { sort: id, descending: !text });
  refresh();
}
