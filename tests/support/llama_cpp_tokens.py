"""How llama.cpp reads a text with a SentencePiece vocabulary (``llama``), from the fields of a GGUF file alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6


def token_ids(fields: Mapping[str, Any], text: str) -> list[int]:
    """Ids of a text in which special tokens are found, behind the BOS token if the file asks for it."""
    of = {name.rpartition(".")[2]: value for name, value in fields.items() if name.startswith("tokenizer.ggml.")}
    tokens, types = of["tokens"], of["token_type"]
    by_text = {token: number for number, token in enumerate(tokens)}
    parts: list[str | int] = [text]
    whole = [number for number, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    for number in sorted(whole, key=lambda number: -len(tokens[number])):
        parts = [piece for part in parts for piece in _split(part, tokens[number], number)]
    ids = [of["bos_token_id"]] if of["add_bos_token"] else []
    behind_special = True
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            spaced = " " * (of["add_space_prefix"] and behind_special) + part
            for piece in _joined(spaced.replace(" ", "\u2581"), by_text, of["scores"]):
                known = by_text.get(piece)
                ids += [by_text[f"<0x{byte:02X}>"] for byte in piece.encode()] if known is None else [known]
        behind_special = isinstance(part, int)
    return ids + [of["eos_token_id"]] * of.get("add_eos_token", False)


def _split(part: str | int, token: str, number: int) -> list[str | int]:
    if isinstance(part, int):
        return [part]
    pieces: list[str | int] = []
    for k, piece in enumerate(part.split(token)):
        pieces += ([number] if k else []) + ([piece] if piece else [])
    return pieces


def _joined(text: str, by_text: Mapping[str, int], scores: list[float]) -> list[str]:
    """The neighbours whose text has the highest score are joined, the first of them, as long as there are any."""
    pieces = list(text)
    while True:
        pairs = [
            (scores[by_text[one + other]], -at)
            for at, (one, other) in enumerate(pairwise(pieces))
            if one + other in by_text
        ]
        if not pairs:
            return pieces
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
