// The list of prompts and responses. Every text is put in by textContent or as a text node: it is shown, never run.
// What is shown stands in the address, as in #set=xstest&changed=1&page=2, so that it can be linked to.
"use strict";
(() => {
  const PAGE_SIZE = 25;
  const SHORT = 200; // characters of a response that are shown before it is opened
  const KEYS = ["set", "category", "changed", "q", "page"];
  const byId = (id) => document.getElementById(id);
  const form = byId("filters");
  let data = null;
  let found = [];
  let page = 1;

  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children); // strings become text nodes
    return node;
  }

  // What the filters ask for.

  function isChanged(row, judge) {
    const of = (model) => (row.j[model][judge] || {}).f;
    const base = of(0);
    return base !== undefined && row.j.some((_, model) => of(model) !== undefined && of(model) !== base);
  }

  function hasText(row, wanted) {
    row.lower ??= [row.p, ...row.a.map((answer) => (answer ? answer.t : ""))].join("\n").toLowerCase();
    return row.lower.includes(wanted);
  }

  function filtered() {
    const { set, category, changed, q } = form.elements;
    const wanted = q.value.trim().toLowerCase();
    const judges = data.judges.map((_, place) => place)
      .filter((place) => changed.value === "1" || changed.value === data.judges[place].name);
    return data.rows.filter((row) =>
      (!set.value || row.s === set.value) &&
      (!category.value || row.c.includes(category.value)) &&
      (!changed.value || judges.some((judge) => isChanged(row, judge))) &&
      (!wanted || hasText(row, wanted)));
  }

  // How an entry looks.

  function shortened(text, className) {
    const node = make("p", "text");
    const letters = Array.from(text); // whole characters: half a pair would show as a box
    if (letters.length <= SHORT * 1.2) {
      node.textContent = text;
      return make("div", className, node);
    }
    const short = letters.slice(0, SHORT).join("") + " …";
    const button = make("button", "more");
    button.type = "button";
    const set = (open) => {
      node.textContent = open ? text : short;
      button.textContent = open ? "Show less" : `Show all ${letters.length.toLocaleString("en")} characters`;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => set(button.getAttribute("aria-expanded") !== "true"));
    set(false);
    return make("div", className, node, button);
  }

  function verdict(row, model, place) {
    const judge = data.judges[place];
    const judgement = row.j[model][place];
    const item = make("li", "", make("b", "", `${judge.name}:`), " ");
    if (!judgement) {
      item.append("not judged");
    } else if (judgement.x !== undefined) {
      item.append(`invalid: ${judgement.x}`);
    } else {
      item.append(...flag(judge, judgement));
      const base = row.j[0][place];
      if (base && base.f !== undefined && base.f !== judgement.f) item.append(" ", make("span", "tag changed", "changed"));
      if (judge.scores.length > 1) item.append(allScores(judge, judgement));
    }
    return item;
  }

  function flag(judge, judgement) {
    if (judge.refusal) return [["no", "yes"][judgement.f]];
    const word = make("span", judgement.f ? "flagged" : "", ["not flagged", "flagged"][judgement.f]);
    const unsafe = judgement.v.filter((_, place) => judge.unsafe[place]);
    return [word, ` ${Math.max(...unsafe).toFixed(2)}`];
  }

  function allScores(judge, judgement) {
    const list = make("ul");
    const order = judgement.v.map((_, place) => place).sort((a, b) => judgement.v[b] - judgement.v[a]);
    for (const place of order) list.append(make("li", "", `${judge.scores[place]} ${judgement.v[place].toFixed(3)}`));
    return make("details", "", make("summary", "", `highest: ${judge.scores[order[0]]}`), list);
  }

  function answerCard(row, model) {
    const answer = row.a[model];
    const card = make("div", `answer c${model ? ((model - 1) % 8) + 1 : 0}`);
    const head = make("h4", "", data.models[model]);
    card.append(head);
    if (!answer) {
      card.append(make("p", "none", "no response"));
      return card;
    }
    const remarks = [`${answer.n} tokens`];
    if (answer.limit) remarks.push("at the length limit");
    if (answer.cut) remarks.push("prompt cut");
    head.append(make("span", "", remarks.join(" · ")));
    if (answer.x !== undefined) card.append(make("p", "none", `invalid: ${answer.x}`));
    else if (!answer.t.trim()) card.append(make("p", "none", "empty response"));
    else card.append(shortened(answer.t, ""));
    const verdicts = make("ul", "verdicts");
    data.judges.forEach((_, place) => { if (row.j[model][place]) verdicts.append(verdict(row, model, place)); });
    if (verdicts.childElementCount) card.append(verdicts);
    return card;
  }

  function entry(row) {
    const head = make("header", "", `#${row.number}`, make("span", "tag", row.s));
    for (const category of row.c) head.append(make("span", "tag", category));
    if (row.l) head.append(make("span", "tag", row.l));
    if (row.w > 1) head.append(make("span", "tag", `in the set ${row.w} times`));
    const cards = make("div", "answers");
    data.models.forEach((_, model) => cards.append(answerCard(row, model)));
    const node = make("article", "entry", head, shortened(row.p, "prompt"), cards);
    node.setAttribute("aria-label", `Prompt ${row.number}`);
    return node;
  }

  // The page and the address.

  function show() {
    found = filtered();
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    page = Math.min(Math.max(1, page), pages);
    const start = (page - 1) * PAGE_SIZE;
    const rows = found.slice(start, start + PAGE_SIZE);
    byId("entries").replaceChildren(...rows.map(entry));
    const range = rows.length ? `${start + 1}–${start + rows.length} of ${found.length}` : "No prompt matches these filters.";
    for (const output of document.querySelectorAll(".pager output")) output.textContent = range;
    for (const button of document.querySelectorAll("[data-turn]")) {
      const to = page + Number(button.dataset.turn);
      button.disabled = to < 1 || to > pages;
    }
  }

  function remember() {
    const state = new URLSearchParams();
    for (const key of KEYS.slice(0, -1)) if (form.elements[key].value) state.set(key, form.elements[key].value);
    state.set("page", String(page));
    history.replaceState(null, "", `#${state}`);
  }

  function addOptions(select, values) {
    for (const [value, label] of values) {
      const option = make("option", "", label);
      option.value = value;
      select.append(option);
    }
  }

  function load() {
    data = JSON.parse(byId("data").textContent);
    data.rows.forEach((row, place) => { row.number = place + 1; });
    const distinct = (values) => [...new Set(values)].map((value) => [value, value]);
    addOptions(form.elements.set, distinct(data.rows.map((row) => row.s)));
    addOptions(form.elements.category, distinct(data.rows.flatMap((row) => row.c)).sort());
    addOptions(form.elements.changed, data.judges.map((judge) => [judge.name, `changed, by ${judge.name}`]));
  }

  function open() {
    if (!data) load();
    byId("gate").hidden = true;
    byId("list").hidden = false;
  }

  function followAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    if (!KEYS.some((key) => state.has(key))) return; // a plain anchor, or nothing
    open();
    for (const key of KEYS.slice(0, -1)) form.elements[key].value = state.get(key) || "";
    page = Number(state.get("page")) || 1;
    show();
  }

  byId("open").addEventListener("click", () => { open(); show(); form.elements.set.focus(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting); // one search for a word, not one a letter
    waiting = setTimeout(() => { page = 1; show(); remember(); }, 150);
  });
  for (const button of document.querySelectorAll("[data-turn]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.turn);
      show();
      remember();
      byId("browse").scrollIntoView();
    });
  }
  window.addEventListener("hashchange", followAddress);
  window.addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("main > section:not(#browse) details")) each.open = true;
  });
  followAddress();
})();
