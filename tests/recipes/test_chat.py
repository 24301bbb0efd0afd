"""``monolora chat``: messages and commands from a pipe, and in a terminal."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from monolora import cli
from monolora.errors import printable
from tests.support.chats import TOKENS, Chatty, Reference, make_chatty
from tests.support.completion_server import CompletionServer, Reply, chat_events
from tests.support.limits import HANG_S
from tests.support.merge_runs import Ended
from tests.support.program_runs import lines_of

QUESTION, SECOND = "The boat was a delight", "And the soup?"
LOCAL = ["--dtype", "float32", "--max-new-tokens", str(TOKENS)]
LIMIT = "The answer has reached its limit of tokens (--max-new-tokens)."

Chat = Callable[..., Ended]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """``chat(*words, lines=[…])``: the command with these lines in its pipe; what it printed is as it stands."""

    def run(*words: str | Path, lines: list[str]) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        status = cli.main(["chat", *map(str, words)])
        printed = capsys.readouterr()
        return Ended(status, printed.out, [line for line in lines_of(printed.err) if line != LIMIT])

    return run


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Chatty:
    """A base and its adapters."""
    return make_chatty(tmp_path_factory.mktemp("chatty"))


@pytest.fixture(scope="module")
def adapted(chatty: Chatty) -> Reference:
    """The adapted model by transformers."""
    return Reference(chatty.base, chatty.mono)


@pytest.fixture(scope="module")
def base(chatty: Chatty) -> Reference:
    """Its base."""
    return Reference(chatty.base)


def shown(*answers: str) -> str:
    """Answers as they are printed."""
    return "".join(f"{printable(answer)}\n" for answer in answers)


def test_lines_of_a_pipe_are_one_conversation(chat: Chat, chatty: Chatty, adapted: Reference) -> None:
    first = adapted.answer(QUESTION)
    second = adapted.answer(QUESTION, first, SECOND)
    assert second != adapted.answer(SECOND)
    ended = chat(chatty.mono, *LOCAL, lines=[QUESTION, "", SECOND, "/reset", SECOND])
    assert ended == (0, shown(first, second, adapted.answer(SECOND)), [])


def test_a_whole_model(chat: Chat, chatty: Chatty, base: Reference) -> None:
    ended = chat(chatty.base, *LOCAL, lines=[QUESTION, "/base", "/units"])
    assert (ended.status, ended.out) == (2, shown(base.answer(QUESTION)))
    assert [line.partition(".")[0] for line in ended.err] == [
        f"error: No base of {chatty.base} is known here, so it alone answers",
        f"error: {chatty.base} is no adapter: it has no units to watch or to switch off here",
    ]


def test_base_and_adapter(chat: Chat, chatty: Chatty, adapted: Reference, base: Reference) -> None:
    """Each goes on with its own answers."""
    ended = chat(
        chatty.mono, *LOCAL, lines=["/both", QUESTION, SECOND, "/base", "/reset", QUESTION, "/adapter", SECOND]
    )
    own = [model.answer(QUESTION) for model in (base, adapted)]
    further = [model.answer(QUESTION, answer, SECOND) for model, answer in zip((base, adapted), own, strict=True)]
    labels = [f"base ({chatty.base}):", "adapter (mono):"]
    pairs = [text for answers in (own, further) for pair in zip(labels, answers, strict=True) for text in pair]
    assert ended == (0, shown(*pairs, own[0], adapted.answer(QUESTION, own[0], SECOND)), [])
    assert own[0] != own[1]


def test_units_are_switched_off_and_on(chat: Chat, chatty: Chatty, adapted: Reference, base: Reference) -> None:
    files = {path: path.read_bytes() for path in chatty.mono.iterdir()}
    lines = ["/off", "/off all", QUESTION, "/units", "/on all", "/reset", QUESTION, "/off 0.q.1,1.v.3", "/on 0.q.1"]
    ended = chat(chatty.mono, *LOCAL, lines=lines)
    names = [f"{layer}.self_attn.{kind}_proj:{unit}" for layer in (0, 1) for kind in "qv" for unit in range(4)]
    prompt = adapted.prompt([{"role": "user", "content": QUESTION}]).shape[1]
    assert ended == (
        0,
        "All units are on.\n"
        f"Off: {', '.join(names[:10])} and 6 more.\n"
        + shown(base.answer(QUESTION))
        + f"All 16 units were zero on all {prompt + TOKENS - 1} tokens, prompt and answer: the base answers so.\n"
        "All units are on.\n"
        + shown(adapted.answer(QUESTION))
        + "Off: 0.self_attn.q_proj:1, 1.self_attn.v_proj:3.\nOff: 1.self_attn.v_proj:3.\n",
        [],
    )
    assert {path: path.read_bytes() for path in chatty.mono.iterdir()} == files


def test_the_table_of_units(chat: Chat, chatty: Chatty) -> None:
    """Its numbers are tested in tests/chat/test_local.py."""
    out = chat(chatty.mono, *LOCAL, lines=["Tea", "/off 1.v.0 1.v.1", "Tea", "/units 3"]).out
    assert re.search(rf"\d+ of 16 units were on while the answer's {TOKENS} tokens were written\.\n", out)
    rows = re.findall(rf"│ (\d\.self_attn\.[qv]_proj:\d) +│ +\d+ of {TOKENS} +│ +([\d.e+-]+) % +│ +'", out)
    assert len(rows) == 3
    assert not {name for name, _ in rows} & {"1.self_attn.v_proj:0", "1.self_attn.v_proj:1"}
    effects = [float(effect) for _, effect in rows]
    assert effects == sorted(effects, reverse=True)
    assert re.search(r"/units \d+ shows all\.", out)


def test_system_message_and_history(chat: Chat, chatty: Chatty, adapted: Reference) -> None:
    lines = [QUESTION, "/system Be nice.", SECOND, "/history", "/system", "/reset", QUESTION, "/history"]
    ended = chat(chatty.mono, *LOCAL, "--system", "Be dull.", lines=lines)
    first = adapted.answer(QUESTION, system="Be dull.")
    second = adapted.answer(QUESTION, first, SECOND, system="Be nice.")
    plain = adapted.answer(QUESTION)
    turns = [f"user: {QUESTION}", f"adapter (mono): {first}", f"user: {SECOND}", f"adapter (mono): {second}"]
    again = [plain, f"user: {QUESTION}", f"adapter (mono): {plain}"]
    assert ended == (0, shown(first, second, "system: Be nice.", *turns, *again), [])
    assert len({first, adapted.answer(QUESTION, system="Be nice."), plain}) == 3


@pytest.fixture
def server() -> Iterator[CompletionServer]:
    """It serves a base and an adapter, and repeats the last message behind the model's name."""

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(200, chat_events(request["model"], ": ", request["messages"][-1]["content"]))

    with CompletionServer(answer, models=["small", "mono"], parents={"mono": "small"}) as served:
        yield served


def test_a_server_answers(chat: Chat, server: CompletionServer) -> None:
    lines = ["/system Be nice.", "Hello", "/both", "Again", "/units", "/off 1.q.2", "/help"]
    ended = chat("--endpoint", server.url, "--temperature", "0.5", "--seed", "3", lines=lines)
    assert ended.status == 2
    assert ended.out.startswith(
        shown("mono: Hello", "base (small):", "small: Again", "adapter (mono):", "mono: Again", "/help ")[:-2]
    )
    assert ended.err == 2 * ["error: Units are read and switched off where the weights are: chat without --endpoint."]
    first = server.requests[0]
    assert (first["temperature"], first["seed"], first["max_tokens"]) == (0.5, 3, 512)
    said = [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Hello"}]
    said += [{"role": "assistant", "content": "mono: Hello"}, {"role": "user", "content": "Again"}]
    assert [request["messages"] for request in server.requests] == [said[:2], said, said]


def test_messages_of_several_lines(chat: Chat, server: CompletionServer) -> None:
    lines = ["one\\", "two\\", "three", '"""', "four\\", "", "/five", '"""', '"""six"""', " /seven", '"""', "eight"]
    ended = chat("mono", "--endpoint", server.url, lines=lines)
    sent = [request["messages"][-1]["content"] for request in server.requests]
    assert sent == ["one\ntwo\nthree", "four\\\n\n/five", "six", " /seven"]
    assert ended.status == 2
    assert ended.err[0].startswith("error: The input ended within a message.")


def test_wrong_commands_do_not_end_the_chat(chat: Chat, chatty: Chatty, adapted: Reference) -> None:
    lines = [
        "/unts",
        "/off 0.q_proj",
        "/off 0.k.1",
        "/off 0.q.1 0.q.9",
        "/on",
        "/units many",
        "/units",
        "/off",
        QUESTION,
    ]
    ended = chat(chatty.mono, *LOCAL, lines=[*lines, "/quit", QUESTION])
    assert (ended.status, ended.out) == (2, "All units are on.\n" + shown(adapted.answer(QUESTION)))
    messages = (
        "Unknown command '/unts'; .* Did you mean /units?",
        "'0.q_proj' names no unit. Write MODULE:NUMBER",
        "There is no unit 0.k.1",
        "model.layers.0.self_attn.q_proj has no unit 9.",
        "Which units? /on 12.self_attn.q_proj:3, or /on all.",
        "/units takes a number, as /units 30, and not many.",
        "mono has not given the last answer. Ask, then /units.",
    )
    assert len(ended.err) == len(messages)
    for line, message in zip(ended.err, messages, strict=True):
        assert re.match(f"error: {message}".replace("?", r"\?").replace("'0.", r"'0\."), line)


def test_what_cannot_work_is_one_line(
    chat: Chat, chatty: Chatty, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHAT_API_KEY", raising=False)
    (tmp_path / "empty").mkdir()
    for words, status, message in (
        ([], 2, "Whom to talk to?"),
        ([tmp_path / "none"], 2, "There is no model at"),
        ([tmp_path / "empty"], 2, "config.json is missing"),
        ([plain_model], 2, "has no chat template, by which .* --chat-template-path"),
        ([chatty.base, "--base", "x"], 2, "is no adapter. Leave --base out."),
        ([chatty.mono, "--base", tmp_path / "none"], 2, "There is no model at"),
        ([chatty.mono, "--api-key-env", "CHAT_API_KEY"], 2, "no effect without --endpoint"),
        ([chatty.mono, "--chat-template-path", tmp_path / "none"], 2, "neither a file nor a folder"),
        ([chatty.mono, "--top-p", "0"], 2, "--top-p must be above 0"),
        (["--endpoint", "host:8000"], 2, "is no URL"),
        (["--endpoint", "http://127.0.0.1:9", "--chat-template-path", "x"], 2, "the chat template is the server's"),
        (["--endpoint", "http://127.0.0.1:9", "--api-key-env", "CHAT_API_KEY"], 2, "CHAT_API_KEY, .*, is not set"),
        (["--endpoint", "http://me:secret-99@127.0.0.1:9/v1"], 1, "http://127.0.0.1:9/v1 does not answer: "),
    ):
        ended = chat(*words, lines=[QUESTION])
        assert (ended.status, ended.out, len(ended.err)) == (status, "", 1), (words, ended)
        assert re.search(message, ended.err[0])
        assert "secret-99" not in ended.err[0]


def test_a_pipe_that_is_not_utf8(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], chatty: Chatty
) -> None:
    """The line is refused, and the others are answered."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n/help\n"), encoding="utf-8"))
    assert cli.main(["chat", str(chatty.mono), *LOCAL]) == 2
    printed = capfd.readouterr()
    assert lines_of(printed.err) == ["error: The input is not UTF-8. Convert it: iconv -f latin1 -t utf-8"]
    assert "/units" in printed.out


class Typist:
    """Types into a terminal, each text as soon as another one is on the screen."""

    def __init__(self, master: int) -> None:
        self.screen, self._master, self._from = "", master, 0

    def __call__(self, awaited: str, typed: str | Callable[[], None]) -> None:
        while (at := self.screen.find(awaited, self._from)) < 0:
            if not self._read(HANG_S):
                raise TimeoutError(f"{awaited!r} did not come after {self.screen[self._from :]!r}")
        self._from = at + len(awaited)
        if not callable(typed):
            os.write(self._master, typed.encode())
            return
        typed()
        # A signal that comes as the program enters a system call is noticed only when that returns: press again.
        while typed is interrupt and not self._read(10):
            typed()

    def _read(self, seconds: float) -> bool:
        """Read what comes within some seconds; whether anything has."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self.screen += os.read(self._master, 65536).decode(errors="replace")
        return True


def interrupt() -> None:
    """Press Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def in_terminal(words: list[str], steps: list[tuple[str, Any]]) -> tuple[int, str]:
    """Run the command in a pseudo-terminal.

    Args:
        words: of the command line.
        steps: text that is awaited, and text that is typed then, or what else is done.

    Returns:
        The exit status, and what was on the screen.
    """
    master, slave = os.openpty()
    typist, failed = Typist(master), list[TimeoutError]()

    def type_all() -> None:
        try:
            for awaited, typed in steps:
                typist(awaited, typed)
        except TimeoutError as error:
            failed.append(error)
            os.close(master)  # the program reads the end of its input

    thread = threading.Thread(target=type_all, daemon=True)
    thread.start()
    with open(slave) as stdin, open(os.dup(slave), "w") as stdout:
        with patch.object(sys, "stdin", stdin), patch.object(sys, "stdout", stdout):
            status = cli.main(["chat", *words])
        thread.join(HANG_S)
        assert not thread.is_alive()
    if failed:
        raise failed[0]
    os.close(master)
    return status, typist.screen


@pytest.mark.parametrize("columns", [60, 120])
def test_in_a_terminal(
    chatty: Chatty,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    """Base and adapter stand side by side where there is room; an error does not end the chat, nor its status."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    steps = [
        ("> ", "/both\n"), ("both> ", f"{QUESTION}\n"), ("both> ", "/off 0.q.1\n"), ("both> ", "/quti\n"),
        ("both> ", "/base\n"), ("base> ", "\x04"), ("0.self_attn.q_proj:1\r\n", lambda: None),
    ]  # fmt: skip
    status, screen = in_terminal([str(chatty.mono), *LOCAL], steps)
    assert status == 0
    assert ("╭" in screen) == (columns == 120)
    assert ("adapter (mono):" in screen) == (columns == 60)
    assert f"Next: monolora prune {chatty.mono} {chatty.mono}-pruned --units 0.self_attn.q_proj:1" in screen
    assert "Did you mean /quit?" in capsys.readouterr().err


def test_ctrl_c_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends an answer, which stays as far as it came, and a line that is being typed; never the chat."""
    monkeypatch.setenv("TERM", "xterm")
    go_on = threading.Event()

    def half() -> Iterator[Any]:
        yield from chat_events("half an ans", finish=None)
        assert go_on.wait(HANG_S)

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(200, half() if len(request["messages"]) == 1 else chat_events("whole."))

    steps = [
        ("> ", interrupt), ("> ", "one\n"), ("half an ans", interrupt), ("(stopped)", ""), ("> ", "two\n"),
        ("whole.", ""), ("> ", "/quit\n"),
    ]  # fmt: skip
    with CompletionServer(answer, models=["m"]) as server:
        status, screen = in_terminal(["--endpoint", server.url], steps)
        go_on.set()
    assert status == 0
    assert "Traceback" not in screen
    said = [("user", "one"), ("assistant", "half an ans"), ("user", "two")]
    assert [(message["role"], message["content"]) for message in server.requests[1]["messages"]] == said


def test_an_exact_checkpoint(
    chat: Chat, chatty: Chatty, adapted: Reference, run_cli: Callable[..., Ended], tmp_path: Path
) -> None:
    flags = ("--method", "exact", "--dtype", "float32", "--verify-on", "demo", "--verify-tokens", "150")
    merged = run_cli("merge", chatty.mono, tmp_path / "exact", *flags)
    assert merged.status == 0, merged.err
    ended = chat(tmp_path / "exact", *LOCAL, lines=[QUESTION, "/units"])
    assert (ended.status, ended.out) == (2, shown(adapted.answer(QUESTION)))
    assert "is no adapter: it has no units to watch or to switch off here" in ended.err[0]
