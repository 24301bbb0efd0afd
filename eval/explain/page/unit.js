// A unit's page.
const HOW = {
  direct: "Its output direction, read through the unembedding as if nothing came in between: logits for each unit of activation, before the final norm divides by the size of the whole stream.",
  ablation: "Mean change of the logits after its strongest contexts, with the unit against without it.",
};

function gate() {
  const { name } = dataset();
  const button = makeButton("", `Show the texts of ${name}`, "", () => {
    opened.add(state.dataset);
    refresh();
    (state.unit === null ? box : byId("unit-title")).focus({ preventScroll: true });
  });
  return make("div", "gate",
    make("p", "", make("strong", "", "Content note. "), `The texts of ${name} may be harmful: violent, hateful, sexual or dangerous. They are shown as they are.`),
    make("p", "", button));
}

function datasetSwitch() {
  const buttons = data.datasets.map(({ name }, place) => {
    const button = makeButton("", name, "", () => {
      state.dataset = place;
      refresh();
    });
    button.setAttribute("aria-pressed", String(place === state.dataset));
    return button;
  });
  const node = make("div", "switch", ...buttons);
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "Data set");
  return node;
}

// Numbers.

function fact(name, value, ...more) {
  return make("div", "", make("dt", "", name), make("dd", "", make("b", "", value), ...more.filter(Boolean).map((text) => make("small", "", text))));
}

function facts(unit, line) {
  const { columns, labels, strongest, chance } = dataset();
  const [mean, deviation, whereFires, q] = line.n;
  const list = [
    fact("fires on", `${percent(columns.firing[unit])} %`, "of tokens"),
    data.kept !== null && state.dataset !== data.kept && fact("kept prompts", `${percent(keptFiring(unit))} %`, "of tokens"),
    fact("effect", `${effect(columns.effect[unit])} %`, "of the module’s output"),
    fact("highest", short(columns.max[unit])),
    data.signed && fact("lowest", short(columns.min[unit])),
    fact("mean", short(mean), `± ${short(deviation)}`),
  ];
  if (labels.length) {
    line.e.forEach(([consistency, label], place) => list.push(
      fact(data.signed ? ["highest texts", "lowest texts"][place] : "strongest texts", `${percent(consistency)} %`, wordOf(label), `of ${strongest}; chance ${percent(chance)} %`)));
    list.push(
      fact("texts it fires on", `${percent(whereFires)} %`, "of one label"),
      fact("information", `${fixed(3)(columns.information[unit])}`, "bits", `q ${probability(q)}`));
    if (columns.probe) list.push(fact("probe alone", `${percent(columns.probe[unit])} %`, words[dataset().told[unit]], "chance 50 %"));
  }
  if (columns.faithfulness && columns.faithfulness[unit] !== null) list.push(fact("faithfulness", fixed(2)(columns.faithfulness[unit]), "r"));
  return make("dl", "facts-of", ...list.filter(Boolean));
}

// Tables.

function tableOf(heads, lines, label) {
  const head = make("tr", "", ...heads.map(([text, className = "", title = ""]) => {
    const cell = withTitle(make("th", className, text), title);
    cell.scope = "col";
    return cell;
  }));
  const rowsOf = lines.map((cells) => {
    const first = make("th", "", ...[cells[0]].flat());
    first.scope = "row";
    return make("tr", "", first, ...cells.slice(1).map((cell) => (cell instanceof Node ? cell : make("td", "", cell))));
  });
  const node = make("div", "box sticky", make("table", "", make("thead", "", head), make("tbody", "", ...rowsOf)));
  node.tabIndex = 0;
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", label);
  return node;
}

function changeCell([value, low, high], isClear) {
  const cell = make("td", isClear ? "clear" : "", shortChange(value));
  if (low !== null && high !== null) cell.append(make("small", "", `[${shortChange(low)}, ${shortChange(high)}]`));
  return cell;
}

function ablations(changes) {
  const heads = [
    ["measure"], ["prompts"], ["adapted"], ["unit taken out", "", "change, ablated minus adapted, and its 95 % confidence interval"],
    ["q", "", "false discovery rate of a change, over all units that were taken out one at a time"],
  ];
  if (data.everything.length) {
    heads.push(["all units taken out", "", "the same change with every unit of the adapter taken out"], ["p", "", "of no change, with every unit taken out: bootstrap over prompts"]);
  }
  const lines = data.measures.map(([title, unit, of, prompts, adapted], place) => {
    const [change, together] = [changes[place], data.everything[place]];
    const [, , , , q] = change;
    return [
      [`${of} ${title}`, ...(unit ? [" ", make("small", "", unit)] : [])], WHOLE.format(prompts), short(adapted),
      changeCell(change, isSmall(q)), probability(q), ...(together ? [changeCell(together, isSmall(together[3])), probability(together[3])] : []),
    ];
  });
  return tableOf(heads, lines, "Ablation");
}

function contrasts(unit, lines) {
  const heads = [
    ["first group"], ["second group", "words"], ["AUC", "", "chance that a text of the first group excites it more than one of the second"],
    ["p", "", "Mann-Whitney test"], ["q", "", "false discovery rate over all units"], ["fires, first"], ["fires, second"],
  ];
  const rowsOf = data.contrasts.map(({ a, b, texts: [inA, inB], auc }, place) => {
    const [p, q, firingA, firingB] = lines[place];
    return [
      [a, " ", make("small", "", `${WHOLE.format(inA)} texts`)], make("td", "words", b, " ", make("small", "", `${WHOLE.format(inB)} texts`)),
      make("td", isSmall(q) ? "clear" : "", fixed(3)(auc[unit])), probability(p), probability(q), `${percent(firingA)} %`, `${percent(firingB)} %`,
    ];
  });
  return tableOf(heads, rowsOf, "Contrasts");
}

// Sections.

function ends(line) {
  const isTwo = line.e.length > 1;
  return line.e.map(([, , contexts], place) => {
    const title = isTwo ? ["Highest activations", "Lowest activations"][place] : "Strongest activations";
    if (!contexts.length) return section(title, isTwo ? "None on this side of 0." : "It never fires here: there is no text to show.");
    const note = place ? "" : "A text each; the line marks the peak, whose value stands before it. Point at a token to read its own.";
    return section(title, note, ...contextList(contexts, line.s, isTwo ? FEW : Infinity));
  });
}

function activations(unit, line) {
  const { edges, tokens, columns } = dataset();
  const firing = columns.firing[unit];
  const bar = make("div", "zeros", make("i", ""));
  bar.style.setProperty("--share", firing === null ? 0 : firing);
  const said = firing === 1 ? "Never exactly 0." : `Exactly 0 on ${percent(firing === null ? null : 1 - firing)} % of tokens; the rest:`;
  const parts = line.h.length ? [make("p", "note", said), firing === 1 ? "" : bar, histogram(line.h, edges, tokens)] : [make("p", "note", "Exactly 0 on all tokens.")];
  return section("Activations", "", ...parts);
}

function topTokens(line) {
  const lists = line.e.map(([, , , tokens]) => tokens).filter((tokens) => tokens.length)
    .map((tokens) => barList(tokens, ([, mean, count]) => `${short(mean)} × ${WHOLE.format(count)}`));
  return lists.length ? section("Tokens that excite it", "Mean activation × how often the token came.", ...lists) : "";
}

function nextTokens(logits) {
  if (!logits) return "";
  const [how, raised, lowered] = logits;
  const note = HOW[how] + (data.signed && how === "direct" ? " Where the unit is negative it is the other way round." : "");
  const sides = [["Raised", raised], ["Lowered", lowered]].filter(([, tokens]) => tokens.length)
    .map(([name, tokens]) => make("div", "", make("h4", "", name), barList(tokens, ([, value]) => shortChange(value))));
  return section("Next tokens", note, make("div", "sides", ...sides));
}

function partners(line) {
  if (!line.p.length) return "";
  const list = make("ol", "partners", ...line.p.map(([unit, correlation]) => {
    const link = withTitle(make("a", "", shortName(unit)), names[unit]);
    link.href = unitAddress(unit);
    const first = isOpen() ? dataset().top[unit].flatMap((tokens) => tokens.slice(0, 2)).slice(0, 2) : [];
    return make("li", "", link, make("span", "chips", ...first.map((token) => chip(words[token], ""))), make("span", "value", fixed(2)(correlation)));
  }));
  return section("Goes together with", "Correlation of the activations over tokens.", list);
}

function commandLine(units) {
  const command = pruneCommand(units);
  const code = make("code", "", command);
  code.tabIndex = 0;
  return make("div", "command", code, makeButton("", "Copy", "Copy the command", ({ currentTarget }) => copy(command, currentTarget)));
}

function unitBar(unit) {
  const place = found.indexOf(unit);
  const back = make("a", "back", "← All units");
  back.href = listAddress();
  const turn = (by, text, label) => {
    const button = makeButton("", text, label, () => turnTo(by));
    button.disabled = place < 0 || !(place + by in found);
    return button;
  };
  const where = make("span", "pale", place < 0 ? "" : `${WHOLE.format(place + 1)} of ${WHOLE.format(found.length)}`);
  const turns = make("div", "turns", where, turn(-1, "‹", "Previous unit"), turn(1, "›", "Next unit"), star(unit, "star"));
  const node = make("nav", "unit-bar", back, turns);
  node.setAttribute("aria-label", "Units");
  return node;
}

function unitHead(unit) {
  const title = make("h2", "", shortName(unit));
  title.tabIndex = -1;
  title.id = "unit-title";
  const name = names[unit];
  const full = make("p", "full", make("code", "", name), makeButton("quiet", "Copy", "Copy the name", ({ currentTarget }) => copy(name, currentTarget)));
  return make("header", "unit-head", make("div", "", title, full), data.datasets.length > 1 ? datasetSwitch() : "");
}

function drawUnit() {
  const { unit } = state;
  const line = unitLine(unit);
  const common = commonLine(unit);
  const texts = isOpen() ? ends(line) : [section("Strongest activations", "", gate())];
  const side = [activations(unit, line), isOpen() ? topTokens(line) : "", nextTokens(common.l), partners(line)];
  const columnsOfPage = make("div", "unit-columns", make("div", "", ...texts), make("div", "side", ...side));
  const tables = [];
  if (data.measures.length) {
    const changes = common.a;
    tables.push(changes
      ? section("Ablation", "Ablated minus adapted. In brackets: 95 % confidence intervals. Bold where q is below 0.05; of all units together, where p is. KL, which is never below 0, has neither.", ablations(changes))
      : section("Ablation", "This unit was not taken out by itself."));
  }
  if (data.contrasts.length) tables.push(section("Contrasts", "Bold where q is below 0.05.", contrasts(unit, common.c)));
  const prune = data.prunable ? section("Take it out", "Writes the adapter without this unit to OUT.", commandLine([unit])) : "";
  const article = make("article", "", unitHead(unit), facts(unit, line), columnsOfPage, ...tables, prune);
  article.setAttribute("aria-labelledby", "unit-title");
  byId("unit-view").replaceChildren(unitBar(unit), make("main", "", article));
}
