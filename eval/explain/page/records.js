// What is known: the list's data at once, the lines of single units when they are asked for.
const data = JSON.parse(byId("data").textContent);
const COUNT = data.module.length;
const names = data.module.map((module, unit) => `${data.modules[module][0]}:${data.number[unit]}`);
const placeOf = new Map(names.map((name, unit) => [name, unit]));
const words = data.strings;

const state = { dataset: 0, sort: "effect", descending: true, q: "", kind: "", layer: "", label: "", show: "", unit: null, current: 0 };
const marked = new Set();
const opened = new Set(); // data sets whose content note was answered

const dataset = () => data.datasets[state.dataset];
const isOpen = () => !dataset().gated || opened.has(state.dataset);
const layerOf = (unit) => data.modules[data.module[unit]][1];
const kindOf = (unit) => data.modules[data.module[unit]][2];
const shortName = (unit) => `${data.modules[data.module[unit]][3]}:${data.number[unit]}`;
const wordOf = (place) => (place === null ? null : words[place]);
/** The most frequent label of its strongest texts, where that it knows the label is not chance; else null. */
const labelOf = (unit) => (isSmall(dataset().columns.q[unit]) ? wordOf(dataset().label[unit]) : null);

// The lines come after this script in the file: they are there when all of the page is.
const whole = new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
const blocks = new Map();

function line(id, unit) {
  if (!blocks.has(id)) blocks.set(id, byId(id).textContent.split("\n"));
  return JSON.parse(blocks.get(id)[unit]);
}

const commonLine = (unit) => line("common", unit);
const unitLine = (unit) => line(`units-${state.dataset}`, unit);

const isDead = (unit) => dataset().columns.firing[unit] === 0;
/** Fires in the first data set, and never on kept prompts. */
const isSilent = (unit) => data.datasets[0].columns.firing[unit] > 0 && keptFiring(unit) === 0;
const keptFiring = (unit) => data.datasets[data.kept].columns.firing[unit];
const isAlwaysOn = (unit) => dataset().columns.firing[unit] === 1;

// For a shell: a plain word as it is, anything else in single quotes.
const shellWord = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, `'"'"'`)}'`);
const pruneCommand = (units) =>
  `monolora prune ${shellWord(data.adapter)} --units ${units.map((unit) => shellWord(names[unit])).join(" ")} OUT`;

// The address: what is not as it is at first.

function address(parts) {
  const text = parts.filter(([, value]) => value !== "" && value !== null)
    .map(([key, value]) => `${key}=${encodeURIComponent(value).replace(/%3A/g, ":").replace(/%2C/g, ",")}`).join("&");
  return `#${text || "units"}`;
}

const datasetPart = () => ["data", state.dataset ? dataset().name : ""];
const unitAddress = (unit) => address([["unit", names[unit]], datasetPart()]);
const markedPart = () => ["marked", [...marked].join(",")];

function currentAddress() {
  if (state.unit !== null) return address([["unit", names[state.unit]], datasetPart(), markedPart()]);
  return listAddress();
}

function listAddress() {
  const sort = (state.descending ? "-" : "") + state.sort;
  const { q, kind, layer, label, show } = state;
  return address([
    datasetPart(), ["q", q], ["kind", kind], ["layer", layer], ["label", label], ["show", show],
    ["sort", sort === "-effect" ? "" : sort], markedPart(),
  ]);
}

const remember = () => history.replaceState(null, "", currentAddress());
