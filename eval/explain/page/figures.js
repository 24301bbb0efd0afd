// Parts of a unit's page that are drawn: contexts, histogram, bars.
const LEVELS = 999; // of an activation: thousandths of the largest
const FEW = 8; // contexts of each of two ends that are shown at first

function section(title, note, ...children) {
  const node = make("section", "", make("h3", "", title));
  if (note) node.append(make("p", "note", note));
  node.append(...children);
  return node;
}

function coloured(node, value, largest) { // value of -largest to largest
  if (!value) return node;
  node.classList.add(value > 0 ? "high" : "low");
  // a little more than in proportion where it is weak, where colours are hard to see
  node.style.setProperty("--heat", `${Math.round(100 * Math.min(1, Math.abs(value) / largest) ** 0.8)}%`);
  return node;
}

// Contexts.

function contextRow([text, label, value, peak, cut, tokens, levels], largest) {
  const shown = make("output", "value", short(value));
  const about = make("div", "about");
  if (label !== null) about.append(withTitle(make("span", "tag", words[label]), words[label]));
  about.append(make("span", "pale", `text ${WHOLE.format(text)}`));
  const line = make("p", "context");
  line.dir = "auto";
  if (cut & 1) line.append(make("span", "pale", "…"));
  tokens.forEach((token, place) => {
    const level = levels[place];
    const node = make("span", place === peak ? "token peak" : "token", ...tokenNodes(words[token], false));
    const at = place === peak ? value : level === null ? null : (level * largest) / LEVELS;
    node.title = at === null ? "not measured" : short(at);
    line.append(coloured(node, level, LEVELS));
  });
  if (cut & 2) line.append(make("span", "pale", "…"));
  // The token under the pointer says its value where the peak's stands, also where there are no titles (phones).
  line.addEventListener("pointerover", ({ target }) => {
    const token = target.closest(".token");
    shown.textContent = token ? token.title : short(value);
    shown.classList.toggle("other", token !== null && !token.classList.contains("peak"));
  });
  line.addEventListener("pointerleave", () => {
    shown.textContent = short(value);
    shown.classList.remove("other");
  });
  return make("li", "", shown, line, about);
}

function contextList(contexts, largest, most) {
  const list = make("ol", "contexts", ...contexts.slice(0, most).map((context) => contextRow(context, largest)));
  if (contexts.length <= most) return [list];
  const button = makeButton("more", `Show all ${contexts.length}`, "", () => {
    const rest = contexts.slice(most).map((context) => contextRow(context, largest));
    list.append(...rest);
    button.remove();
    rest[0].tabIndex = -1;
    rest[0].focus({ preventScroll: true });
  });
  return [list, button];
}

// Bars of words.

function barList(pairs, describe) { // [token, value, …]
  const largest = Math.max(...pairs.map(([, value]) => Math.abs(value)));
  return make("ol", "bars", ...pairs.map((pair) => {
    const [token, value] = pair;
    const bar = make("span", value < 0 ? "bar low" : "bar high");
    bar.style.setProperty("--length", `${largest ? (100 * Math.abs(value)) / largest : 0}%`);
    return withTitle(make("li", "", make("span", "word", ...tokenNodes(words[token], true)), bar, make("span", "value", describe(pair))), words[token]);
  }));
}

// The histogram.

function histogram([first, ...counts], edges, tokens) {
  const largest = Math.max(...counts);
  const between = (bin) => {
    const ends = [first + bin, first + bin + 1];
    const open = ends.find((place) => edges[place] === null);
    return open === undefined ? ends.map((place) => edge(edges, place)).join(" to ") : edge(edges, open);
  };
  const bars = counts.map((count, bin) => {
    const isLow = edges[first + bin + 1] !== null && edges[first + bin + 1] <= 0;
    const bar = make("i", isLow ? "low" : "high");
    bar.style.height = `${count ? Math.max(1, (100 * count) / largest) : 0}%`;
    return withTitle(make("span", "", bar), `${between(bin)}: ${WHOLE.format(count)} tokens, ${percent(count / tokens)} %`);
  });
  const plot = make("div", counts.length > 60 ? "histogram many" : "histogram", ...bars);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `Histogram of its activations that are not 0, from ${edge(edges, first)} to ${edge(edges, first + counts.length)}; most are ${between(counts.indexOf(largest))}`);
  const most = make("p", "scale", `↑ tokens, ${WHOLE.format(largest)} in the highest bar`);
  return make("div", "", most, plot, axis(first, counts.length, edges), make("p", "scale", data.signed ? "activation, on a scale that is logarithmic on both sides of 0 →" : "activation, on a logarithmic scale →"));
}

function edge(edges, place) { // the outermost may be infinite
  if (edges[place] !== null) return Math.abs(edges[place]) < 1e-30 ? "0" : short(edges[place]);
  return place ? `over ${short(edges[place - 1])}` : `under ${short(edges[1])}`;
}

function axis(first, bins, edges) {
  const ticks = make("div", "axis");
  const steps = Math.min(4, bins);
  const places = Array.from({ length: steps + 1 }, (_, step) => Math.round((step * bins) / steps));
  const zero = edges.findIndex((value) => value !== null && Math.abs(value) < 1e-30) - first;
  const hasZero = zero > 0 && zero < bins; // between two signs
  const shown = places.filter((bin) => !hasZero || bin === 0 || bin === bins || Math.abs(bin - zero) > bins / 8);
  for (const bin of hasZero ? [...new Set([...shown, zero])].sort((a, b) => a - b) : shown) {
    const tick = make("span", "", edge(edges, first + bin));
    tick.style.left = `${(100 * bin) / bins}%`;
    ticks.append(tick);
  }
  return ticks;
}
