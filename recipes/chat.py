"""``monolora chat ADAPTER_OR_MODEL``: talk to a model or an adapter in the terminal, and to its base.

It takes an adapter of any PEFT method, a model's id or folder, or a merged checkpoint; with --endpoint, a model that an
OpenAI-compatible server serves. Ctrl-C stops an answer, Ctrl-D leaves. /help lists the commands: /both asks base and
adapter, /units shows which units were on in the last answer, /off switches units off. A line that ends with a backslash
goes on, and so does what stands between two lines of three double quotes.

From a pipe, each line is a message of one conversation, and the answers are printed plain.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from monolora.chat.conversation import BASE, TUNED, Answer, Conversation, Speaker, Turn
from monolora.chat.local import AnswerUnits, LocalSpeaker, Sampling, load_speaker
from monolora.cli.flags import FlagParser, api_key
from monolora.errors import InputError, RunError, exit_status, printable, unknown
from monolora.files import code_trusted
from monolora.recipes.settings import Chat
from monolora.redaction import remember_url
from monolora.terminal import STDERR, Terminal, say, suggest

WIDE = 90  # characters of a terminal, from which base and adapter stand side by side
UNITS = 10  # that are shown
QUOTES = '"""'


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora chat", __doc__).parse_into(argv, Chat))


def run(settings: Chat) -> int:
    """Chat; returns the exit status."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 costs its own line, not those around it
    with code_trusted(settings.trust_remote_code), _speaker(settings) as speaker:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        session = Session(speaker, Terminal(), is_terminal)
        if settings.system:
            session.set_system(settings.system)
        if is_terminal:
            session.greet()
        status = converse(session)
        if is_terminal and settings.model and isinstance(speaker, LocalSpeaker) and speaker.off:
            pruned = f"{settings.model.rstrip('/')}-pruned"
            suggest("monolora", "prune", settings.model, pruned, "--units", *speaker.names(speaker.off))
    return status


@contextmanager
def _speaker(settings: Chat) -> Iterator[Speaker]:
    if settings.endpoint is None:
        assert settings.model is not None  # as Chat.check() makes sure
        options = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
        yield load_speaker(
            settings.model,
            options,
            base=settings.base,
            dtype=settings.dtype,
            chat_template_path=settings.chat_template_path,
        )
        return
    from monolora.chat.served import ServedSpeaker  # the openai client, a second that a local model does without

    remember_url(settings.endpoint)
    key = None if settings.api_key_env is None else api_key(settings.api_key_env)
    names = ("temperature", "top_p", "seed")
    body = {"max_tokens": settings.max_new_tokens, **{name: getattr(settings, name) for name in names}}
    with ServedSpeaker(settings.endpoint, settings.model, settings.base, body, key) as served:
        yield served


def converse(session: Session) -> int:
    """Take messages and commands until they end.

    Returns:
        The exit status: of a pipe, 2 if a line could not be taken.

    Raises:
        RunError, KeyboardInterrupt: from a pipe; in a terminal the chat goes on.
    """
    status = 0
    while not session.is_over:
        try:
            session.take(read_message(session.prompt))
        except EOFError:
            if session.is_terminal:
                print()  # after the prompt
            break
        except InputError as error:
            STDERR.print(f"error: {error}", soft_wrap=True)
            status = 2
        except RunError as error:
            if not session.is_terminal:
                raise
            STDERR.print(f"error: {error}", soft_wrap=True)
        except KeyboardInterrupt:
            if not session.is_terminal:
                raise
            print()
    return 0 if session.is_terminal else status


def read_message(prompt: str) -> str:
    """A message or command: a line, lines joined by backslashes at their ends, or lines between triple quotes.

    Raises:
        EOFError: where the input ends.
        InputError: for what is not UTF-8, and quotes that are not closed.
    """
    further = "… " if prompt else ""
    text = _line(prompt)
    try:
        if text.startswith(QUOTES):
            text = text.removeprefix(QUOTES)
            while not text.endswith(QUOTES):
                text += "\n" + _line(further)
            text = text.removesuffix(QUOTES).strip("\n")
            return f" {text}" if text.startswith("/") else text  # no command
        while text.endswith("\\"):
            text = text[:-1] + "\n" + _line(further)
    except EOFError:
        raise InputError('The input ended within a message. Close it with """, or leave the last \\ out.') from None
    return text


def _line(prompt: str) -> str:
    try:
        line = input(prompt)
        line.encode()
    except UnicodeError as error:
        raise InputError("The input is not UTF-8. Convert it: iconv -f latin1 -t utf-8") from error
    return line


class Command(NamedTuple):
    """What can be typed beside messages.

    Attributes:
        usage: its words.
        summary: what it does.
        run: does it, given the rest of the line.
    """

    usage: str
    summary: str
    run: Callable[[str], None]


@dataclass
class Session:
    """A chat and its commands.

    Attributes:
        speaker: who answers.
        console: where tables and panels go.
        is_terminal: whether someone types.
        asked: whom messages go to, of ``TUNED`` and ``BASE``.
        is_over: whether ``/quit`` was typed.
    """

    speaker: Speaker
    console: Terminal
    is_terminal: bool
    asked: tuple[str, ...] = (TUNED,)
    is_over: bool = False
    conversation: Conversation = field(default_factory=Conversation)

    def __post_init__(self) -> None:
        """List the commands, which a terminal completes."""
        self.commands = {
            command.usage.split()[0]: command
            for command in (
                Command("/help", "these commands", self._help),
                Command("/base", "answers of the base alone", lambda words: self._ask_only(BASE)),
                Command("/adapter", "answers of the adapter again", lambda words: self._ask_only(TUNED)),
                Command("/both", "answers of base and adapter", lambda words: self._ask_only(BASE, TUNED)),
                Command("/units [N]", f"units that were on in the last answer, {UNITS} or N of them", self._units),
                Command("/off UNIT …", "answers without these units (12.self_attn.q_proj:3, 12.q.3, all)", self._off),
                Command("/on UNIT …", "answers with them again (or all)", self._on),
                Command("/system [TEXT]", "system message; without TEXT, none", self.set_system),
                Command("/history", "the messages so far", self._history),
                Command("/reset", "a new conversation, with the same system message and units", self._reset),
                Command("/quit", "end (or Ctrl-D)", self._quit),
            )
        }
        if self.is_terminal:
            _edit_lines([*self.commands])

    @property
    def prompt(self) -> str:
        """What stands before the cursor; nothing for a pipe."""
        if not self.is_terminal:
            return ""
        return "> " if self.asked == (TUNED,) else f"{'base' if self.asked == (BASE,) else 'both'}> "

    def greet(self) -> None:
        """Say who is there."""
        titles = self.speaker.titles
        who = f"{titles[TUNED]} on {titles[BASE]}" if BASE in titles else titles[TUNED]
        self.console.print(f"{who}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.", style="dim")

    def take(self, text: str) -> None:
        """Answer a message, or run a command.

        Raises:
            InputError: for an unknown command, and what cannot be done.
            RunError: if the answering fails.
        """
        if not text.startswith("/"):
            if text.strip():
                self._answer(text)
            return
        name, _, rest = text.partition(" ")
        if name not in self.commands:
            raise unknown("command", name, self.commands)
        self.commands[name].run(rest.strip())

    # Answers.

    def _answer(self, question: str) -> None:
        """Print the answers, and remember them; what was interrupted before its first word is forgotten."""
        turn = Turn(question)
        is_wide = self.is_terminal and self.console.width >= WIDE
        for who, answer in (self._beside if is_wide and len(self.asked) > 1 else self._in_turn)(question):
            if answer.text or answer.end != "interrupted":
                turn.answers[who] = answer.text
            if answer.end == "interrupted":
                if not self.is_terminal:
                    raise KeyboardInterrupt
                self.console.print("(stopped)", style="dim")
                break
            if answer.end == "length":
                STDERR.print("The answer has reached its limit of tokens (--max-new-tokens).", style="dim")
        if turn.answers:
            self.conversation.turns.append(turn)

    def _in_turn(self, question: str) -> Iterator[tuple[str, Answer]]:
        """One answer below the other, each as it comes."""
        for who in self.asked:
            if len(self.asked) > 1:
                say(f"{self._label(who)}:")
            messages = self.conversation.messages(who, question)
            answer = self.speaker.answer(messages, who, lambda piece: print(printable(piece), end="", flush=True))
            print(flush=True)
            yield who, answer

    def _beside(self, question: str) -> Iterator[tuple[str, Answer]]:
        """Both answers side by side, as they come."""
        texts = dict.fromkeys(self.asked, "")
        answers = []
        with Live(self._panels(texts), console=self.console, auto_refresh=False) as live:
            for who in self.asked:

                def show(piece: str, who: str = who) -> None:
                    texts[who] += piece
                    live.update(self._panels(texts), refresh=True)

                answers.append((who, self.speaker.answer(self.conversation.messages(who, question), who, show)))
                if answers[-1][1].end == "interrupted":
                    break
        yield from answers

    def _panels(self, texts: dict[str, str]) -> Table:
        grid = Table.grid(expand=True)
        for _ in texts:
            grid.add_column(ratio=1)
        grid.add_row(*(Panel(Text(text), title=Text(self._label(who))) for who, text in texts.items()))
        return grid

    def _label(self, who: str) -> str:
        return f"{who} ({self.speaker.titles[who]})"

    # Commands.

    def _help(self, words: str) -> None:
        table = Table.grid(padding=(0, 2))
        for command in self.commands.values():
            table.add_row(command.usage, command.summary)
        self.console.print(table)

    def _ask_only(self, *asked: str) -> None:
        if BASE in asked and BASE not in self.speaker.titles:
            title = self.speaker.titles[TUNED]
            fix = "Name the adapter's folder" if isinstance(self.speaker, LocalSpeaker) else "Give its name with --base"
            raise InputError(f"No base of {title} is known here, so it alone answers. {fix}.")
        self.asked = asked

    def _quit(self, words: str) -> None:
        self.is_over = True

    def _reset(self, words: str) -> None:
        self.conversation.turns.clear()

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it.

        Raises:
            InputError: if the chat template takes none.
        """
        changed = Conversation(text, self.conversation.turns)
        self.speaker.check(changed.messages(TUNED, "a"))
        self.conversation = changed

    def _history(self, words: str) -> None:
        if self.conversation.system:
            say(f"system: {self.conversation.system}")
        for turn in self.conversation.turns:
            say(f"user: {turn.question}")
            for who, answer in turn.answers.items():
                say(f"{self._label(who)}: {answer}")

    # Units.

    def _local(self) -> LocalSpeaker:
        if not isinstance(self.speaker, LocalSpeaker):
            raise InputError("Units are read and switched off where the weights are: chat without --endpoint.")
        return self.speaker

    def _off(self, words: str) -> None:
        if words:
            self._local().switch_off(words.replace(",", " ").split())
        self._say_off()

    def _on(self, words: str) -> None:
        if not words:
            raise InputError("Which units? /on 12.self_attn.q_proj:3, or /on all.")
        self._local().switch_on(words.replace(",", " ").split())
        self._say_off()

    def _say_off(self) -> None:
        names = self._local().names(self._local().off)
        shown = ", ".join(names[:UNITS]) + (f" and {len(names) - UNITS} more" if len(names) > UNITS else "")
        say(f"Off: {shown}." if names else "All units are on.")

    def _units(self, words: str) -> None:
        if words and not (words.isdecimal() and int(words) > 0):
            raise InputError(f"/units takes a number, as /units 30, and not {words}.")
        units = self._local().last_units()
        for line in units_lines(units, int(words or UNITS)):
            self.console.print(line, soft_wrap=isinstance(line, str))


def units_lines(units: AnswerUnits, most: int) -> Iterator[str | Table]:
    """What ``/units`` prints.

    Args:
        units: of the answer.
        most: rows of the table.
    """
    count, steps = len(units.firings), units.steps
    if not count and not units.in_prompt:
        yield f"All {units.units} units were zero on all {units.read} tokens, prompt and answer: the base answers so."
        return
    if not count:
        yield f"All {units.units} units were zero while the answer's {steps} tokens were written."
    else:
        yield f"{count} of {units.units} units were on while the answer's {steps} tokens were written."
        table = Table("unit", "on", "effect", "strongest at")
        for unit in units.firings[:most]:
            tokens = ", ".join(f"{token!r} {value:.3g}" for token, value in unit.strongest)
            table.add_row(unit.name, f"{unit.steps} of {steps}", f"{100 * unit.effect:.2g} %", tokens)
        yield table
        if count > most:
            yield f"/units {count} shows all."
    if units.in_prompt:
        yield f"{units.in_prompt} {'more ' if count else ''}were on in the prompt alone."


def _edit_lines(words: list[str]) -> None:
    """Editing, history and completion of what is typed, where Python has readline."""
    with suppress(ImportError):
        readline = importlib.import_module("readline")
        readline.set_completer_delims(" ")
        readline.set_completer(lambda text, n: dict(enumerate(word for word in words if word.startswith(text))).get(n))
        readline.parse_and_bind("tab: complete")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
