// Elements, numbers and tokens as they are shown. Every text is put in as a text node: it is shown, never run.
const NOTHING = "–";
const WHOLE = new Intl.NumberFormat("en");
// What has no look of its own: controls, and marks that turn the direction of what comes after them.
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u200b\u2028-\u202e\u2060-\u206f\ufeff]/;
const PICTURES = { "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
const byId = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children); // strings become text nodes
  return node;
}

function withTitle(node, title) {
  node.title = title;
  return node;
}

function makeButton(className, text, label, act) {
  const button = make("button", className, text);
  button.type = "button";
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

// Numbers.

const signMended = (text) => (/[1-9]/.test(text) ? text.replace(/-/g, "−") : text.replace(/^[-+]/, ""));

function short(value) { // three digits that count
  if (value === null) return NOTHING;
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 0.001 && size > 0)) return signMended(value.toExponential(1).replace("e+", "e"));
  if (size >= 1000) return signMended(WHOLE.format(Math.round(value)));
  return signMended(size === 0 ? "0" : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3));
}

const shortChange = (value) => (value > 0 ? `+${short(value)}` : short(value));
const fixed = (places) => (value) => (value === null ? NOTHING : signMended(value.toFixed(places)));

function percent(value) { // of a share; only what is exactly none or all is said to be
  if (value === null) return NOTHING;
  if (value > 0 && value < 0.0005) return "<0.1";
  if (value < 1 && value >= 0.9995) return ">99.9";
  return (100 * value).toFixed(value === 0 || value === 1 ? 0 : 1);
}

const isSmall = (p) => p !== null && p < 0.05; // p and q

function probability(p) { // p and q
  if (p === null) return NOTHING;
  return p < 0.001 ? "<0.001" : p.toFixed(p < 0.1 ? 3 : 2);
}

// Tokens.

function picture(letter) {
  if (letter in PICTURES) return PICTURES[letter];
  const code = letter.codePointAt(0);
  return code < 32 ? String.fromCodePoint(0x2400 + code) : `⟨${code.toString(16).toUpperCase()}⟩`;
}

/** The token's text as nodes: what cannot be seen gets a pale picture; so do spaces, of a token that stands `alone`
 * at both its ends, and else of one that has nothing else. */
function tokenNodes(text, alone) {
  if (!text) return [make("i", "unseen", "∅")];
  const edge = alone ? (text.length - text.trimStart().length) : 0;
  const end = alone ? text.trimEnd().length : text.length;
  const isBlank = text.length > 1 ? !text.trim() : alone && text === " ";
  if (!isBlank && !edge && end === text.length && !UNSEEN.test(text)) return [text];
  const nodes = [];
  let plain = "";
  Array.from(text).forEach((letter, place) => {
    const isShownSpace = letter === " " && (isBlank || (alone && (place < edge || place >= end)));
    if (!isShownSpace && !UNSEEN.test(letter)) {
      plain += letter;
      return;
    }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(make("i", "unseen", isShownSpace ? "·" : picture(letter)));
  });
  if (plain) nodes.push(plain);
  return nodes;
}

const chip = (text, className) => make("span", `chip ${className}`, ...tokenNodes(text, true));

// Copying.

function copy(text, button) {
  const done = () => {
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  };
  if (navigator.clipboard) {
    navigator.clipboard.writeText(text).then(done, () => copyByHand(text, done));
  } else { // a page from http:// has no clipboard
    copyByHand(text, done);
  }
}

function copyByHand(text, done) {
  const area = make("textarea", "aside", text);
  document.body.append(area);
  area.select();
  if (document.execCommand("copy")) done();
  area.remove();
}
