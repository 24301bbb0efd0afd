"""The records of a run: one per response, judgement and measurement. The files have their fields under these names.

Keys are hashes of contents: the prompt's token ids, the model's weights, the settings, the judge. A record is reused if
and only if all of these are the same, whatever the names of models and folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from monolora.errors import InputError, SaveError, in_one_line
from monolora.files import saving, type_problem, write_text
from monolora.locks import locked

OK, INVALID = "ok", "invalid"


class Response(NamedTuple):
    """A model's answer to a prompt.

    Attributes:
        key: hash of prompt token ids, model and generation settings.
        prompt: key of the prompt.
        model: identity of the model (a hash, not its name).
        text: the answer without special tokens; empty if there is none.
        tokens: number of generated tokens.
        finish: ``stop`` (an end token) or ``length``.
        cut: whether the prompt was cut from the left to fit the context.
        status: ``ok``, or ``invalid`` if the engine gave no answer.
        reason: why it is invalid, otherwise None.
    """

    key: str
    prompt: str
    model: str
    text: str = ""
    tokens: int = 0
    finish: str = ""
    cut: bool = False
    status: str = OK
    reason: str | None = None


class Judgement(NamedTuple):
    """A judge's verdict on a response.

    Attributes:
        key: hash of response and judge.
        response: key of the response.
        judge: identity of the judge (a hash, not its name).
        scores: by name, each in [0, 1]; empty if invalid.
        cut: whether the end of the response was left out to fit the judge's context.
        status: ``ok``, or ``invalid``: no verdict, and in no mean.
        reason: why it is invalid, otherwise None.
    """

    key: str
    response: str
    judge: str
    scores: dict[str, float] = {}  # noqa: RUF012 (never changed)
    cut: bool = False
    status: str = OK
    reason: str | None = None


class Measurement(NamedTuple):
    """A measurement of a model as a whole.

    Attributes:
        key: hash of kind, model and prompts.
        kind: ``sparsity`` on a set's prompts, ``drift`` along the base's answers to a set, or ``canary``.
        model: identity of the model.
        values: fields of :class:`monolora.sparsity.Sparsity`; ``kl`` and, of models with units, ``silent`` by the key
            of the answer; or fields of :class:`monolora.vllm.canary.Canary`.
    """

    key: str
    kind: str
    model: str
    values: dict[str, Any]


# The records of a run on disk: append-only files of one JSON object a line.
#
# A process that is killed while it writes leaves at most one torn line, the last, which is cut off when the file is
# opened again; so the file always holds whole records, each once. One process at a time may write.


_Record = TypeVar("_Record", Response, Judgement, Measurement)
_RETRY = "All earlier records are whole: free space, then give the same command again."


class Records(Generic[_Record]):
    """One file of records, by key; all of it is in memory.

    Args:
        path: the file; it need not be there.
        kind: the records' class.

    Raises:
        InputError: if a line that is not the last is damaged.
    """

    def __init__(self, path: Path, kind: type[_Record]) -> None:
        self._path = path
        self._by_key: dict[str, _Record] = {}
        if path.is_file():
            _cut_torn_line(path)
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    record = _parsed(line, kind, f"{path}, line {number}")
                    self._by_key.setdefault(record.key, record)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> _Record:
        return self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)

    def values(self) -> Iterable[_Record]:
        """All records, in the order in which they were written."""
        return self._by_key.values()

    def add(self, record: _Record) -> None:
        """Write one more record; one whose key is there already is passed over.

        Raises:
            SaveError: if the disk does not take it; the file is as it was then.
        """
        if record.key in self._by_key:
            return
        line = _line(record).encode()
        try:
            with self._path.open("ab", buffering=0) as file:
                before = file.tell()
                if file.write(line) != len(line):  # a disk that is just full takes a part
                    file.truncate(before)
                    raise OSError(28, os.strerror(28))
        except OSError as error:
            raise SaveError.of(self._path, error, _RETRY) from error
        self._by_key[record.key] = record

    def drop(self, unwanted: Callable[[_Record], bool]) -> None:
        """Write the file anew without some records.

        Raises:
            SaveError: if the disk does not take it; the file is as it was then.
        """
        kept = {key: record for key, record in self._by_key.items() if not unwanted(record)}
        if len(kept) == len(self._by_key):
            return
        with saving(self._path, _RETRY):
            write_text(self._path, "".join(map(_line, kept.values())))
        self._by_key = kept


class Store:
    """All records of a run folder. Only who has it locked may write; :func:`opened` does both.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.responses = Records(folder / "responses.jsonl", Response)
        self.judgements = Records(folder / "scores.jsonl", Judgement)
        self.measurements = Records(folder / "measurements.jsonl", Measurement)


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The store of a run folder, while no other process writes to it.

    Raises:
        InputError: if another one does.
    """
    with locked(folder, "--out"):
        yield Store(folder)


def _line(record: Response | Judgement | Measurement) -> str:
    return json.dumps(record._asdict()) + "\n"


def is_invalid(record: Response | Judgement) -> bool:
    """Whether it is no answer, or no verdict."""
    return record.status == INVALID


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line end: a record that was being written when its process was killed."""
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _parsed(line: bytes, kind: type[_Record], where: str) -> _Record:
    try:
        values = json.loads(line)
        if problem := type_problem(values, kind):
            raise ValueError(problem)
        return kind(**values)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where}: damaged ({in_one_line(error)}) Delete that line, and its row is asked for again."
        ) from error
