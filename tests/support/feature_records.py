"""Made-up records of units: seeded, harmless, and shaped like real ones.

Each unit has a word that it likes (or none); contexts are windows of made-up texts with that word in their middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monolora.eval.explain.explorer import explorer_page
from monolora.eval.explain.records import (
    Ablations,
    Change,
    Context,
    Contrast,
    DatasetFeatures,
    End,
    Explained,
    Measure,
    Partner,
    TokenMean,
    UnitLogits,
)
from monolora.units import UnitName

TOPICS = {
    "weather": ("rain", "clouds", "frost", "drizzle", "thunder", "breeze"),
    "cooking": ("bread", "butter", "onions", "simmer", "dough", "oven"),
    "gardening": ("seeds", "roses", "compost", "prune", "tulips", "soil"),
    "sailing": ("harbour", "mast", "anchor", "tide", "rudder", "sails"),
    "music": ("violin", "melody", "rhythm", "choir", "piano", "tempo"),
}
_SENTENCES = (
    "Early in the morning the {} was all that anybody at the table wanted to talk about",
    "If you ask my neighbour, nothing is better than {} after a long and quiet day",
    "She wrote three pages about {} and then, without a word, closed the notebook",
    "\nQ: What should I know about {} before I begin?\nA: Start small, and take your time",
    "The children had never seen so much {} in one place, and they laughed",
    "We waited for the {} until half past four; it was well worth it",
)
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
EDGES = np.concatenate([[0.0], 2.0 ** np.arange(-12, 8, 0.5), [np.inf]])
SIGNED_EDGES = np.concatenate([-EDGES[:0:-1], EDGES])
BEFORE, AFTER = 12, 8


def made(
    units: int = 24,
    contexts: int = 6,
    signed: bool = False,
    gated: tuple[bool, ...] = (False, True),
    labels: bool = True,
    seed: int = 0,
    **replaced: Any,
) -> Explained:
    """Records of an adapter with six modules a layer and 16 units a module.

    Args:
        units: how many.
        contexts: of an end of a unit.
        signed: whether units have two ends.
        gated: of each data set.
        labels: whether texts have labels.
        seed: of all numbers.
        replaced: fields of :class:`Explained`.
    """
    rng = np.random.default_rng(seed)
    words = [word for of_topic in TOPICS.values() for word in of_topic]
    liked = [None if unit % 11 == 7 else words[int(rng.integers(len(words)))] for unit in range(units)]
    data = [
        _dataset(name, is_gated, liked, contexts, signed, labels, rng)
        for name, is_gated in zip(("notes", "letters", "logs"), gated, strict=False)
    ]
    fields: dict[str, Any] = {
        "title": "What the units of a small adapter do",
        "adapter": "runs/notes monolora",
        "method": "LoRA" if signed else "MonoLoRA",
        "model": "llama-tiny",
        "is_signed": signed,
        "units": [UnitName(f"model.layers.{k // 96}.{KINDS[k // 16 % 6]}", k % 16) for k in range(units)],
        "datasets": data,
        "logits": [None if word is None else _logits(word, words, rng) for word in liked],
        "ablations": _ablations(units, rng),
        "contrasts": [_contrast("notes:weather", "notes:music", units, rng), _contrast("letters", "notes", units, rng)],
        "origin": {
            "settings": {"contexts": contexts, "seed": seed},
            "versions": {"torch": "2.13", "monolora": "0.1.0"},
        },
    }
    return Explained(**fields | replaced)


def windows(seed: int = 0, texts: int = 40) -> dict[str, list[tuple[int, str, list[str], int]]]:
    """By word: text number, topic, 21 tokens, and the place of the word."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[int, str, list[str], int]]] = {}
    for topic, words in TOPICS.items():
        for word in words:
            for _ in range(texts):
                drawn = [_SENTENCES[k].format(word) for k in rng.permutation(len(_SENTENCES))]
                tokens = _tokens(". ".join(drawn) + ".")
                peak = next(k for k in range(BEFORE, len(tokens)) if tokens[k].strip() == word)
                window = tokens[peak - BEFORE : peak + AFTER + 1]
                found.setdefault(word, []).append((int(rng.integers(2000)), topic, window, BEFORE))
    return found


def _tokens(text: str) -> list[str]:
    for mark in ".,;:?\n":
        text = text.replace(mark, f"\x00{mark}")
    return [token for part in text.split("\x00") for token in _words(part) if token]


def _words(part: str) -> list[str]:
    mark, rest = (part[:1], part[1:]) if part[:1] in (*".,;:?\n",) else ("", part)
    head, *others = rest.split(" ")
    return [mark, head, *(f" {other}" for other in others)]


def _dataset(
    name: str, is_gated: bool, liked: list[str | None], contexts: int, signed: bool, labels: bool, rng: Any
) -> DatasetFeatures:
    units = len(liked)
    alive = np.array([word is not None for word in liked])
    firing = np.where(alive, 1.0 if signed else rng.beta(0.6, 2, units), 0.0)
    firing[3::17] = np.where(alive[3::17], 0.9987, 0.0)
    firing[6::17] = np.where(alive[6::17], 1.0, 0.0)
    highest = np.where(alive, rng.lognormal(0.5, 1, units), 0.0)
    lowest = -highest * rng.uniform(0.4, 1, units) if signed else np.zeros(units)
    edges = SIGNED_EDGES if signed else EDGES
    pool = windows(seed=len(name))
    nothing = np.full(units, np.nan)
    return DatasetFeatures(
        name=name,
        is_gated=is_gated,
        texts=2000,
        tokens=61_234,
        labels=dict.fromkeys(TOPICS, 390) if labels else {},
        unlabelled=50 if labels else 2000,
        note="the first 64 tokens of each text" if is_gated else "",
        strongest=50,
        chance=0.294 if labels else float("nan"),
        firing=firing,
        mean=highest * firing * 0.1,
        std=highest * 0.2,
        max=highest,
        min=lowest,
        effect=np.where(alive, rng.lognormal(-5, 1.3, units), 0.0),
        edges=edges,
        histogram_UE=np.stack([_histogram(edges, low, high, rng) for low, high in zip(lowest, highest, strict=True)]),
        consistency=np.where(alive, rng.uniform(0.2, 0.6, units), np.nan) if labels else nothing,
        information=np.where(alive, rng.gamma(1, 0.2, units), 0.0) if labels else nothing,
        information_q=np.where(alive, rng.beta(0.2, 2, units), 1.0) if labels else nothing,
        partners=[_partners(unit, units, rng) if alive[unit] else [] for unit in range(units)],
        ends=[
            _end(liked, extreme, contexts, labels, pool, rng)
            for extreme in ([highest, lowest] if signed else [highest])
        ],
    )


def _histogram(edges: Any, low: float, high: float, rng: Any) -> Any:
    sizes = (
        np.concatenate([rng.lognormal(np.log(abs(end) / 12), 0.9, 3000) * np.sign(end) for end in (low, high) if end])
        if low or high
        else np.empty(0)
    )
    return np.histogram(np.clip(sizes, low, high), bins=edges)[0]


def _end(liked: list[str | None], extreme: Any, contexts: int, labels: bool, pool: Any, rng: Any) -> End:
    names = list(TOPICS)
    return End(
        contexts=[
            [] if word is None else _contexts(extreme[unit], pool[word], contexts, labels, rng)
            for unit, word in enumerate(liked)
        ],
        tokens=[[] if word is None else _token_means(extreme[unit], word, rng) for unit, word in enumerate(liked)],
        consistency=np.array([np.nan if word is None or not labels else rng.uniform(0.3, 1) for word in liked]),
        label=[None if word is None or not labels else names[int(rng.integers(len(names)))] for word in liked],
    )


def _contexts(extreme: float, pool: Any, contexts: int, labels: bool, rng: Any) -> list[Context]:
    values = extreme * np.sort(rng.uniform(0.45, 1, contexts))[::-1]
    values[:1] = extreme
    found = []
    for value, place in zip(values, rng.integers(len(pool), size=contexts), strict=True):
        text, topic, tokens, peak = pool[place]
        around = value * np.exp(-np.abs(np.arange(len(tokens)) - peak) / rng.uniform(0.6, 3))
        activations = np.where(rng.random(len(tokens)) < 0.35, 0.0, around * rng.uniform(0.3, 1, len(tokens)))
        activations[peak] = value
        found.append(
            Context(
                text, topic if labels else None, float(value), peak, tokens, activations.tolist(), True, text % 3 > 0
            )
        )
    return found


def _token_means(extreme: float, word: str, rng: Any) -> list[TokenMean]:
    tokens = [f" {word}", word.title(), f" {word}s", " the", ",", "\n"]
    means = extreme * np.sort(rng.uniform(0.05, 0.8, len(tokens)))[::-1]
    return [
        TokenMean(*each)
        for each in zip(tokens, means.tolist(), rng.integers(1, 900, len(tokens)).tolist(), strict=True)
    ]


def _partners(unit: int, units: int, rng: Any) -> list[Partner]:
    others = [int(k) for k in rng.permutation(units)[:6] if k != unit][:5]
    return [
        Partner(*each) for each in zip(others, np.sort(rng.uniform(0.1, 0.9, len(others)))[::-1].tolist(), strict=True)
    ]


def _logits(word: str, words: list[str], rng: Any) -> UnitLogits:
    drawn = [f" {words[k]}" for k in rng.permutation(len(words))[:19]]
    sizes = np.sort(rng.lognormal(-2, 0.7, 20))[::-1].tolist()
    raised = list(zip([f" {word}", *drawn[:9]], sizes, strict=False))
    return UnitLogits("direct", raised, [(token, -size) for token, size in zip(drawn[9:], sizes, strict=False)])


def _ablations(units: int, rng: Any) -> Ablations:
    measures = [
        Measure("notes.accuracy", "accuracy", "pp", "notes", 400, 91.2),
        Measure("letters.kl", "KL", "nats", "letters", 200, float("nan"), is_tested=False),
    ]
    changes = {
        unit: [_change(rng.normal(-0.2, 0.6), 0.5, rng.beta(0.2, 1)), _change(0.01 + abs(rng.normal(0, 0.01)), 0.006)]
        for unit in range(0, units, 2)
    }
    everything = [_change(-38.25, 4.1, 0.0002)._replace(q=np.nan), Change(1.31, np.nan, np.nan)]
    return Ablations(measures=measures, changes=changes, everything=everything)


def _change(value: float, half: float, p: float = np.nan) -> Change:
    return Change(value, value - half, value + half, p, float(np.minimum(1, 2 * p)))


def _contrast(a: str, b: str, units: int, rng: Any) -> Contrast:
    p = rng.beta(0.3, 1, units)
    shares = rng.beta(0.6, 2, (2, units))
    return Contrast(
        a=a,
        b=b,
        texts_a=390,
        texts_b=388,
        auc=rng.beta(8, 8, units),
        p=p,
        q=np.minimum(1, 2 * p),
        firing_a=shares[0],
        firing_b=shares[1],
    )


def written(folder: Path, explained: Explained) -> Path:
    """The explorer of these records, in a file."""
    page = folder / "explorer.html"
    page.write_text(explorer_page(explained), encoding="utf-8")
    return page


KEY = """const press = (key) => (doc.activeElement || doc.body).dispatchEvent(
  new win.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));"""
"""JavaScript: press a key where the focus is."""

UNITS = """[...doc.querySelectorAll("#rows tr[data-unit]")].map((row) => Number(row.dataset.unit))"""
"""JavaScript: the units whose rows are there."""
