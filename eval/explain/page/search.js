// Search: names and the list's tokens at once, the texts of units as they are read, a little at a time.
const SLICE = 12; // milliseconds of reading before the page may answer again
const moduleNames = data.modules.map(([name]) => name.toLowerCase());
let texts = []; // by unit, all its words in lower case
let textsOf = null; // the data set and whether it is open: what they were read for

function textOf(unit) {
  const { l: logits } = commonLine(unit);
  const parts = logits ? [...logits[1], ...logits[2]].map(([token]) => words[token]) : [];
  if (isOpen()) {
    for (const [, , contexts, tokens] of unitLine(unit).e) {
      for (const [token] of tokens) parts.push(words[token]);
      for (const context of contexts) parts.push(contextText(context));
    }
  }
  return parts.join("\u0000").toLowerCase();
}

const contextText = (context) => context[5].map((token) => words[token]).join("");

/** Read what is not read yet; the list is shown anew once all of it is. */
function readTexts() {
  const wanted = `${state.dataset} ${isOpen()}`;
  if (textsOf === wanted) return;
  textsOf = wanted;
  texts = [];
  const step = () => {
    if (textsOf !== wanted) return; // another reading has begun
    const end = performance.now() + SLICE;
    while (texts.length < COUNT && performance.now() < end) texts.push(textOf(texts.length));
    if (texts.length < COUNT) setTimeout(step);
    else if (state.q && state.unit === null) showList();
  };
  whole.then(step);
}

const isReading = () => state.q !== "" && texts.length < COUNT;

function nameMatches(unit, q) {
  const layer = q.match(/^(?:layer ?|l)?(\d+)$/); // "3", "L3" and "layer 3" are the layer and not a part of 31
  if (layer) return layerOf(unit) === Number(layer[1]);
  const module = data.module[unit];
  return `${moduleNames[module]}:${data.number[unit]}`.includes(q) || data.modules[module][3].toLowerCase() === q;
}

const hasTopToken = (unit, q) =>
  isOpen() && dataset().top[unit].some((end) => end.some((token) => words[token].toLowerCase().includes(q)));

function fits(unit) {
  const { kind, layer, label, show, q } = state;
  if (kind && kindOf(unit) !== kind) return false;
  if (layer && String(layerOf(unit)) !== layer) return false;
  if (label && labelOf(unit) !== label) return false;
  if (show === "marked" && !marked.has(unit)) return false;
  if (show === "dead" && !isDead(unit)) return false;
  if (show === "on" && !isAlwaysOn(unit)) return false;
  if (data.kept !== null && ((show === "silent" && !isSilent(unit)) || (show === "heard" && keptFiring(unit) === 0))) return false;
  if (show === "mostly" && !(dataset().columns.firing[unit] > 0.99)) return false;
  if ((show === "alive" || show === "sometimes") && isDead(unit)) return false;
  if (show === "sometimes" && isAlwaysOn(unit)) return false;
  return !q || nameMatches(unit, q) || hasTopToken(unit, q) || (unit < texts.length && texts[unit].includes(q));
}

/** What comes before, at and after the search word where it first stands in one of the unit's texts; else null. */
function snippet(unit) {
  const { q } = state;
  if (!q || !isOpen() || unit >= texts.length || nameMatches(unit, q) || !texts[unit].includes(q)) return null;
  for (const [, , contexts] of unitLine(unit).e) {
    for (const context of contexts) {
      const text = contextText(context);
      const at = text.toLowerCase().indexOf(q);
      if (at >= 0) return [wordsBefore(text.slice(0, at)), text.slice(at, at + q.length), text.slice(at + q.length)];
    }
  }
  return null;
}

/** The end of a text, from the beginning of a word. */
function wordsBefore(text) {
  const end = text.slice(-18);
  return end.length < text.length ? end.slice(end.indexOf(" ") + 1) : end.trimStart();
}
