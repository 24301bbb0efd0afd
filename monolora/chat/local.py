"""A chat with a model in this process: an adapter with its base, or a whole model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from monolora.adapters import adapter_config, load_adapted
from monolora.chat.conversation import BASE, TUNED, Answer, Say
from monolora.data.chat_template import prompt_ids, set_chat_template
from monolora.data.example import Example
from monolora.data.prompt_sets import sampling_seed
from monolora.errors import InputError, RunError, in_one_line
from monolora.explain.ablation import ablated, why_not_ablated
from monolora.explain.collector import text_units
from monolora.explain.contexts import Text
from monolora.hub import check_vocabulary, context_length, load_causal_lm, load_tokenizer, on_gpus, resolve_model
from monolora.inference import evaluating, generate, sampling
from monolora.units import Layout, UnitName, find_units, short_names

_SHORTEST = re.compile(r"(\d+)\.(\w+)[.:](\d+)")


class Sampling(NamedTuple):
    """How answers are generated; greedily at the temperature 0."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class UnitFirings(NamedTuple):
    """A unit in the last answer.

    Attributes:
        name: short, as :meth:`LocalSpeaker.switch_off` takes it.
        steps: in which it was on, of those that wrote the answer's tokens.
        effect: as in :class:`monolora.explain.Collected`, over these steps.
        strongest: tokens read in the steps in which it was strongest, and its activations there, the largest first.
    """

    name: str
    steps: int
    effect: float
    strongest: list[tuple[str, float]]


@dataclass(frozen=True)
class AnswerUnits:
    """The units in the last answer.

    Attributes:
        firings: units that were on while it was written, that with the largest effect first.
        units: how many the adapter has.
        steps: in which the answer was written, one a token.
        read: tokens that were read, prompt and answer.
        in_prompt: how many other units were on, in the prompt alone.
    """

    firings: list[UnitFirings]
    units: int
    steps: int
    read: int
    in_prompt: int


class _Streamer:
    """What ``generate`` shows its tokens to: hands on the text, token by token, and keeps the tokens.

    transformers' ``TextStreamer`` waits for a space, which some languages do not write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
        self.ids: list[int] = []
        self._tokenizer, self._say = tokenizer, say
        self._shown, self._is_prompt = 0, True

    @property
    def text(self) -> str:
        """The answer so far."""
        return str(self._tokenizer.decode(self.ids, skip_special_tokens=True))

    def put(self, value: torch.Tensor) -> None:
        """Args: value: the prompt at first, ``(1, T)``; then a token at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.ids += value.flatten().tolist()
        if not (text := self.text).endswith("\ufffd"):  # a character of several tokens is not complete
            self._show(text)

    def end(self) -> None:
        """Called after the last token."""
        self._show(self.text)

    def _show(self, text: str) -> None:
        if piece := text[self._shown :]:
            self._shown = len(text)
            self._say(piece)


class LocalSpeaker:
    """Answers by transformers.

    Args:
        model: a causal language model, with an adapter or without.
        tokenizer: its tokenizer, with a chat template.
        titles: as in :class:`monolora.chat.conversation.Speaker`.
        settings: of the generation.

    Attributes:
        titles: as given.
        off: units that are switched off.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, titles: dict[str, str], settings: Sampling
    ) -> None:
        self.titles, self.off = titles, set[UnitName]()
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._context = context_length(model.config)
        end = model.generation_config.eos_token_id
        self._ends = {*([end] if isinstance(end, int) else end or [])}
        self._last: tuple[list[int], list[int], set[UnitName]] | None = None

    def check(self, messages: list[dict[str, str]]) -> None:
        """Raises: InputError, for messages that the chat template refuses, or leaves something out of."""
        self._prompt(messages)

    def answer(self, messages: list[dict[str, str]], who: str, say: Say) -> Answer:
        """As :meth:`monolora.chat.conversation.Speaker.answer`; Ctrl-C ends it."""
        prompt, settings = self._prompt(messages), self._settings
        most = settings.max_new_tokens
        if self._context is not None:
            most = min(most, self._context - len(prompt))
        if most < 1:
            raise InputError(
                f"The conversation has {len(prompt):,} tokens, and the model reads {self._context:,}. Begin anew with "
                "/reset."
            )
        streamer, interrupted = _Streamer(self._tokenizer, say), False
        if settings.temperature > 0:
            torch.manual_seed(sampling_seed(settings.seed, prompt))
        options = sampling(settings.temperature, settings.top_p)
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        try:
            with self._acting(who):
                generate(self._model, [prompt], pad, max_new_tokens=most, streamer=streamer, **options)
        except KeyboardInterrupt:
            interrupted = True
            streamer.end()
        self._last = (prompt, streamer.ids, set(self.off)) if who == TUNED else None
        if interrupted:
            return Answer(streamer.text, "interrupted")
        return Answer(streamer.text, "stop" if self._ends.intersection(streamer.ids[-1:]) else "length")

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return prompt_ids(Example("", "", history=tuple(messages), origin="The conversation"), self._tokenizer)

    @contextmanager
    def _acting(self, who: str, off: set[UnitName] | None = None) -> Iterator[None]:
        """In the block the model is ``who``, without the units that are off.

        Raises:
            RunError: for what goes wrong in the block, such as memory that does not suffice.
        """
        off = self.off if off is None else off
        try:
            with evaluating(self._model):
                if who == BASE:
                    with self._model.disable_adapter():
                        yield
                elif off:
                    with ablated(self._model, [off]):
                        yield
                else:
                    yield
        except (InputError, RunError):
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise RunError(f"The model fails: {in_one_line(error)}") from error

    # Units.

    def switch_off(self, names: Iterable[str]) -> None:
        """Take units out of the adapter's next answers, as :func:`monolora.explain.ablation.ablated` does.

        Args:
            names: of units, as for :func:`monolora.units.find_units`, or as 12.q.3; ``all`` for all.

        Raises:
            InputError: for a name that is none, or units that cannot be taken out.
        """
        units = self._named(names)
        reasons = why_not_ablated(self._model)
        for unit in units:
            if unit.module in reasons:
                raise InputError(f"The units of {unit.module} cannot be taken out: {reasons[unit.module]}.")
        self.off |= units

    def switch_on(self, names: Iterable[str]) -> None:
        """Undo :meth:`switch_off`, of some units or ``all``."""
        self.off -= self._named(names)

    def names(self, units: Iterable[UnitName]) -> list[str]:
        """Short names of units, in the adapter's order."""
        layout = self._layout()
        short, order = short_names(layout.ranks), layout.indices()
        return [f"{short[unit.module]}:{unit.unit}" for unit in sorted(units, key=lambda unit: order[unit])]

    def last_units(self, strongest: int = 3) -> AnswerUnits:
        """What the units did in the last answer, which is read once more for it.

        A step writes a token after it has read the one before: its units are those of the token that it reads.

        Args:
            strongest: how many of a unit's strongest tokens are given.

        Raises:
            InputError: if the adapter did not answer, or has no units.
        """
        layout = self._layout()
        if self._last is None or not self._last[1]:
            raise InputError(f"{self.titles[TUNED]} has not given the last answer. Ask, then /units.")
        prompt, answer, off = self._last
        ids, start = prompt + answer[:-1], len(prompt) - 1
        with self._acting(TUNED, off):
            h_LU, effect_U = text_units(self._model, Text(0, ids, start))
        # Units are read before those that are off are taken out.
        h_LU = h_LU.masked_fill(torch.tensor([unit in off for unit in layout.units]), 0)
        steps_U, names = (h_LU[start:] != 0).sum(0).tolist(), self.names(layout.units)
        firing = sorted((unit for unit, steps in enumerate(steps_U) if steps), key=lambda unit: -float(effect_U[unit]))
        read_T, h_TU = ids[start:], h_LU[start:]
        firings = [
            UnitFirings(names[unit], steps_U[unit], float(effect_U[unit]), self._top(h_TU[:, unit], read_T, strongest))
            for unit in firing
        ]
        in_prompt = int((h_LU != 0).any(0).sum()) - len(firing)
        return AnswerUnits(firings, len(names), len(answer), len(ids), in_prompt)

    def _top(self, h_T: torch.Tensor, ids: Sequence[int], most: int) -> list[tuple[str, float]]:
        order = h_T.abs().argsort(descending=True, stable=True)[:most].tolist()
        return [(str(self._tokenizer.decode([ids[at]])), float(h_T[at])) for at in order if h_T[at] != 0]

    def _named(self, names: Iterable[str]) -> set[UnitName]:
        layout, names = self._layout(), list(names)
        if "all" in names:
            return set(layout.units)
        return find_units((_whole(name, layout.ranks) for name in names), layout.ranks)

    def _layout(self) -> Layout:
        """Raises: InputError, if there are no units."""
        if BASE not in self.titles:
            raise InputError(f"{self.titles[TUNED]} is no adapter: it has no units to watch or to switch off here.")
        try:
            return Layout.of(self._model)
        except InputError as error:
            raise InputError(f"{self.titles[TUNED]} has no units that could be watched or switched off.") from error


def _whole(name: str, modules: Iterable[str]) -> str:
    """``12.q.3`` as ``model.layers.12.self_attn.q_proj:3``, if one module alone is meant; else in the usual form."""
    match = _SHORTEST.fullmatch(name)
    if match is None:
        return name
    layer, kind, unit = match.groups()
    meant = [each for each in modules if re.search(rf"\.{layer}\.(.+\.)?{kind}(_proj)?$", each)]
    if not meant:
        layers = sorted({int(number) for each in modules for number in re.findall(r"\.(\d+)\.", each)})
        kinds = dict.fromkeys(re.sub("_proj$", "", each.rpartition(".")[2]) for each in modules)
        raise InputError(
            f"There is no unit {name}: units are LAYER.MODULE.UNIT, of layers {layers[0]} to {layers[-1]} and the "
            f"modules {', '.join(kinds)}."
        )
    return f"{meant[0] if len(meant) == 1 else f'{layer}.{kind}'}:{unit}"


def load_speaker(
    source: str,
    settings: Sampling,
    *,
    base: str | None = None,
    dtype: str = "bfloat16",
    chat_template_path: str | None = None,
) -> LocalSpeaker:
    """Load an adapter with its base, or a whole model.

    Args:
        source: an adapter folder of any PEFT method; or a model's id or folder, a merged checkpoint too.
        settings: of the generation.
        base: the adapter's base, if not the one that it names.
        dtype: of the base's weights.
        chat_template_path: of a template to use instead of the model's own.

    Raises:
        InputError: if there is no model, its files are damaged, or it has no chat template.
    """
    model: Any
    if (Path(source) / "adapter_config.json").is_file():
        if not (base or adapter_config(source).base_model_name_or_path):
            raise InputError(f"{source}/adapter_config.json names no base model. Give it with --base.")
        model, tokenizer = load_adapted(source, base, dtype=dtype)
        titles = {TUNED: Path(source).name or source, BASE: str(model.name_or_path)}
    else:
        if base is not None:
            raise InputError(f"--base is an adapter's base, and {source} is no adapter. Leave --base out.")
        folder = resolve_model(source)
        model, tokenizer = load_causal_lm(folder, dtype=dtype, **on_gpus()).eval(), load_tokenizer(folder)
        check_vocabulary(model, tokenizer, source)
        titles = {TUNED: source}
    if chat_template_path is not None:
        set_chat_template(tokenizer, chat_template_path)
    if not tokenizer.chat_template:
        raise InputError(
            f"{source} has no chat template, by which it could tell who says what. Give one with --chat-template-path."
        )
    return LocalSpeaker(model, tokenizer, titles, settings)
