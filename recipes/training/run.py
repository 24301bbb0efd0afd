"""What a training run is, whatever its trainer: inputs read and checked, scores before, training, scores after, saved.

A program prepares a :class:`Run` of its own and hands it to :func:`train`.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_pt_utils import get_model_param_count

from monolora import run_record
from monolora.adapters import fit_vocabulary, has_tokenizer
from monolora.data.scoring import Metric, prompt_sparsity
from monolora.data.task import Row
from monolora.data.tasks import Example
from monolora.errors import exit_status, on_main_process
from monolora.files import code_trusted
from monolora.hub import check_vocabulary, local_path, resolve_model
from monolora.inference import Inference
from monolora.keep.anchors import base_key, is_quantized
from monolora.keep.report import KeepingReport, keeping_table
from monolora.locks import no_empty_folder
from monolora.recipes.training import checkpoints, continuation, publication
from monolora.recipes.training.arguments import Arguments, resolved_config
from monolora.recipes.training.checkpoints import Resumed
from monolora.recipes.training.command import answer, read_copy
from monolora.recipes.training.data import Data, dataset_names
from monolora.recipes.training.data_checks import check_alive, check_finite, preview
from monolora.recipes.training.keeping import Keeping, make_keeping
from monolora.recipes.training.model_card import result_table, rows_line
from monolora.recipes.training.models import is_sharded, load_model, load_tokenizer, peft_config
from monolora.recipes.training.progress import training_progress
from monolora.recipes.training.validation import REFUSAL_MARGIN, best_step, choose_metric, unchanged
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import OutputFolder, claim
from monolora.terminal import Terminal, say, suggest, unfailing_output


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads before its model is loaded.

    Attributes:
        config: every flag's value.
        folder: the output folder, in the main process; None with ``--preview``.
        resumed: the checkpoint to resume from.
        adapter: PEFT's config; None for full finetuning.
        model_folder: where the base lies.
        tokenizer: the base's.
        fingerprints: of the base, the adapter that is trained further, the data and the anchors.
        hub_repo: of ``--push-to-hub``.
    """

    config: dict[str, Any]
    folder: OutputFolder | None
    resumed: Resumed | None
    adapter: LoraConfig | None
    model_folder: str
    tokenizer: PreTrainedTokenizerBase
    fingerprints: dict[str, str]
    hub_repo: str | None

    @property
    def base(self) -> str:
        """The base's key (:func:`monolora.keep.anchors.base_key`)."""
        return base_key(self.fingerprints["model"], self.config)


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """A run that is ready to train: everything is loaded and checked, and nothing is written yet.

    Attributes:
        previewed: how many rows ``--preview`` shows.
        arguments: all flags.
        inputs: what was read.
        trainer: one of TRL's, with :class:`~monolora.recipes.training.checkpoints.AtomicCheckpoints`.
        keeping: what is kept of the base.
        rows: counts, for the record.
    """

    previewed: ClassVar[int] = 3
    arguments: Arguments
    inputs: Inputs
    trainer: Any
    keeping: Keeping
    rows: dict[str, Any]

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.arguments.training.output_dir or "")

    @property
    def reference_name(self) -> str | None:
        """The model that preferences are learned against: ``base`` or an adapter's folder; None where there is none."""
        return None

    @abstractmethod
    def score(self, when: str) -> dict[str, Any] | None:
        """Scores on the held-out rows, or None where there are to be none."""

    @property
    @abstractmethod
    def validation_metrics(self) -> Sequence[Metric]:
        """What :meth:`validation_scores` gives."""

    @property
    def needed_for_metrics(self) -> Mapping[str, str]:
        """Flags without which a metric is not measured while training, by its name."""
        return {REFUSAL_MARGIN.name: "--keep or --keep-report"}

    @abstractmethod
    def validation_scores(self, inference: Inference) -> dict[str, Any] | None:
        """Scores of a model on the rows of ``--validation-samples``."""

    @abstractmethod
    def prompts(self) -> Sequence[Example]:
        """Held-out prompts, on which the adapter's sparsity is measured."""

    @abstractmethod
    def preview_rows(self) -> Iterable[Mapping[str, Any]]:
        """Tokenized examples with ``labels``."""

    def score_before(self) -> dict[str, Any] | None:
        """Of the model that training starts from: those that an interrupted run measured, or :meth:`score`."""
        before = self.inputs.resumed.scores_before(self.inputs.config) if self.inputs.resumed else None
        return before or (self.score("before training") if self.is_at_start() else None)

    def is_at_start(self) -> bool:
        """Whether the model is the one that training starts from when :meth:`score_before` is called.

        Sharded weights are scored when training begins, and are those of the checkpoint by then.
        """
        return self.inputs.resumed is None or not is_sharded(self.trainer)

    def inference(self, when: str, shows_progress: bool = True) -> Inference:
        """The model as it is now, to be scored; without the autocast that training wraps around it."""
        return Inference(
            model=self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False),
            tokenizer=self.inputs.tokenizer,
            batch_size=self.arguments.training.per_device_eval_batch_size,
            when=when,
            shows_progress=shows_progress,
        )

    def choose_metric(self) -> None:
        """Raises: InputError, if ``--metric-for-best-model`` is not measured while training."""
        kept = [REFUSAL_MARGIN] if self.keeping.measured_sets(with_held_out=True) else []
        choose_metric(self.arguments.training, [*self.validation_metrics, *kept], self.needed_for_metrics)

    def scores_in_training(self) -> dict[str, Any]:
        """Those of validation, and the refusal margin if that decides."""
        inference = self.inference("in training", shows_progress=False)
        scores = self.validation_scores(inference) or {}
        if self.arguments.training.metric_for_best_model == REFUSAL_MARGIN.name:
            scores[REFUSAL_MARGIN.name] = self.keeping.refusal_margin(inference)
        return scores

    def keeping_record(self) -> dict[str, Any] | None:
        """What was kept of the base, and how; None where nothing was to be kept or measured."""
        inference = self.inference("after training")
        base = partial(load_model, self.inputs.model_folder, self.arguments)
        flags = self.arguments.adapter
        return self.keeping.record(inference, base, flags, with_held_out=not flags.skip_eval)


Prepare = Callable[[Arguments, OutputFolder | None], Run]


def train(arguments: Arguments, prepare: Prepare) -> dict[str, Any]:
    """Train and measure one model.

    Args:
        arguments: all flags.
        prepare: loads and checks everything that the run needs, and writes nothing but the trainer's empty output
            folder. It is given the output folder in the main process, and None with ``--preview``.

    Returns:
        The content of ``run.json``; empty after ``--preview``.

    Raises:
        InputError: for anything in the flags, the model or the data that cannot work; nothing is written then.
        RunError: if training diverged.
        SaveError: if a checkpoint or the result could not be written; earlier checkpoints stay intact.
    """
    started = time.monotonic()
    output = Path(arguments.training.output_dir or "")
    with ExitStack() as stack:
        stack.enter_context(code_trusted(arguments.training.trust_remote_code))
        stack.enter_context(no_empty_folder(output))
        folder = None
        if not arguments.adapter.preview:
            folder = on_main_process(lambda: stack.enter_context(claim(output, run_record.SFT, "--output-dir")))
        this = prepare(arguments, folder)
        this.choose_metric()
        this.trainer.scores = this.scores_in_training
        with unfailing_output():
            if PartialState().is_main_process:
                say(rows_line(this.rows))
        if arguments.adapter.preview:
            if PartialState().is_main_process:
                preview(this.preview_rows(), this.inputs.tokenizer, Terminal(), this.previewed)
            return {}
        resumed = this.inputs.resumed
        if resumed is not None:
            resumed.check_steps(this.trainer)
        at_start = _AtStart(this)
        if is_sharded(this.trainer):  # by the trainer when it begins, before the reporters write
            this.trainer.callback_handler.callbacks.insert(0, at_start)
        else:
            at_start()
        with unfailing_output(), training_progress(this.trainer):
            this.trainer.train(resume_from_checkpoint=str(resumed.checkpoint) if resumed else None)
        return finish(this, at_start.record, time.monotonic() - at_start.ended, started)


class _AtStart(TrainerCallback):
    """Begins a run, now or when the trainer has sharded the weights."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.record: dict[str, Any] = {}
        self.ended = 0.0  # by the clock

    def __call__(self) -> None:
        self.record = begin(self._run)
        self.ended = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with unchanged(self._run.trainer.accelerator.unwrap_model(self._run.trainer.model)):
            self()


def read_inputs(
    arguments: Arguments,
    folder: OutputFolder | None,
    built_in: Collection[str],
    read: Callable[[], Data[Row]],
) -> tuple[Inputs, Data[Row]]:
    """Read and check what comes before the model.

    Args:
        arguments: all flags.
        folder: the output folder, in the main process; None with ``--preview``.
        built_in: names of data sets that are no paths.
        read: reads the data.

    Raises:
        InputError: for flags, a checkpoint, an output folder, data or a model that cannot be used.
    """
    training, flags = arguments.training, arguments.adapter
    output = Path(training.output_dir or "")
    config = resolved_config(arguments)
    resumed = checkpoints.find(training.resume_from_checkpoint, output, config)
    if not flags.preview and not (resumed and resumed.checkpoint.parent.resolve() == output.resolve()):
        on_main_process(lambda: _check(folder, arguments, built_in))
    adapter = peft_config(arguments)
    data = read()
    model_folder = resolve_model(flags.model, arguments.model.model_revision)
    fingerprints = {"model": fingerprint_files(model_folder)} | data.fingerprints()
    if flags.adapter_from is not None:
        continuation.check_base(flags.adapter_from, flags.model, fingerprints["model"])
        fingerprints["adapter"] = continuation.fingerprint(flags.adapter_from)
    if resumed:
        resumed.check_same_inputs(fingerprints)
    inputs = Inputs(
        config=config,
        folder=folder,
        resumed=resumed,
        adapter=adapter,
        model_folder=model_folder,
        tokenizer=load_tokenizer(_tokenizer_folder(flags.adapter_from, model_folder), training),
        fingerprints=fingerprints,
        hub_repo=publication.claim(training),
    )
    return inputs, data


def _tokenizer_folder(adapter: str | None, model: str) -> str:
    """Where the tokenizer is: with the adapter that is trained further, if it was saved there, or with the base."""
    return adapter if adapter is not None and has_tokenizer(adapter) else model


def load_base(arguments: Arguments, inputs: Inputs, tested: Sequence[Example]) -> tuple[PreTrainedModel, Keeping]:
    """The base, and what is to be kept of it.

    Args:
        arguments: all flags.
        inputs: of the run; the fingerprint of the anchors is added.
        tested: the held-out examples, which are no anchors.

    Raises:
        InputError: if the model cannot be loaded, does not fit its tokenizer, or has no anchors.
    """
    training, flags, tokenizer = arguments.training, arguments.adapter, inputs.tokenizer
    model = load_model(inputs.model_folder, arguments)
    if flags.adapter_from is not None:
        fit_vocabulary(model, flags.adapter_from, tokenizer)
    check_vocabulary(model, tokenizer, flags.model)
    keeping = Keeping(keepers=[])
    if not flags.preview:
        folder_of_base = None if is_quantized(inputs.config) else inputs.model_folder
        batch_size = training.per_device_eval_batch_size
        keeping = make_keeping(flags, tested, model, tokenizer, inputs.base, folder_of_base, batch_size)
        if inputs.resumed:
            inputs.resumed.check_same_inputs(keeping.fingerprints())
        inputs.fingerprints.update(keeping.fingerprints())
    return model, keeping


def _check(folder: OutputFolder | None, arguments: Arguments, built_in: Collection[str]) -> None:
    """Raises: InputError, where an earlier result is in the way, or something that the run reads is in its folder."""
    assert folder is not None  # it is the main process, and no preview
    training, flags = arguments.training, arguments.adapter
    folder.check(flags.overwrite)
    adapters = [] if flags.adapter_from is None else [flags.adapter_from]
    names = [flags.model, *adapters, *(name for name in dataset_names(flags) if name not in built_in)]
    files = (
        training.resume_from_checkpoint,
        training.chat_template_path,
        training.deepspeed,
        training.fsdp_config,
        training.accelerator_config,
    )
    folder.check_apart([*filter(None, map(local_path, names)), *(file for file in files if isinstance(file, str))])


def begin(this: Run) -> dict[str, Any]:
    """Score the model before training and write the first record."""
    training = this.arguments.training
    if this.inputs.folder is not None:
        this.inputs.folder.clear()
    record: dict[str, Any] = {
        "status": "running",
        "config": this.inputs.config,
        "seeds": {"seed": training.seed, "data_seed": training.data_seed},
        **provenance(),
        "fingerprints": this.inputs.fingerprints,
        **({"reference": this.reference_name} if this.reference_name else {}),
        "rows": this.rows,
        "results": {"before": this.score_before(), "after": None},
    }
    if PartialState().is_main_process:
        run_record.write(this.output, record)
    return record


def finish(this: Run, record: dict[str, Any], train_seconds: float, started: float) -> dict[str, Any]:
    """Score the trained model, save it and its record, and push it with ``--push-to-hub``."""
    trainer, adapter = this.trainer, this.arguments.adapter.adapter
    model = trainer.model
    assert isinstance(model, nn.Module)
    check_finite(model, trainer.state.log_history)
    after = this.score("after training")
    has_units = after and adapter != "none"
    sparsity = prompt_sparsity(this.inference("after training"), this.prompts()) if has_units else None
    if sparsity:
        check_alive(sparsity)
    results = {
        "before": record["results"]["before"],
        "after": after,
        "validation": this.validation_scores(this.inference("after training")),
        "best": best_step(trainer),
        "trained_parameters": get_model_param_count(model, trainable_only=True),
        "sparsity": sparsity._asdict() if sparsity else None,
        "keeping": this.keeping_record(),
        "seconds": {"train": train_seconds, "total": time.monotonic() - started},
    }
    record = {**record, "status": "done", "results": results, "history": trainer.state.log_history}
    publication.save(trainer, record, this.output)
    if PartialState().is_main_process and this.inputs.hub_repo is not None:
        publication.push(this.output, this.inputs.hub_repo, this.arguments.training)
    return record


def _next(record: dict[str, Any], output: str) -> Sequence[str]:
    """The words of a command: what did the run do to its base? Where that is measured, a merge that keeps it."""
    adapter = record["config"]["adapter"]
    if adapter == "none":
        return "eval", "run", "--model", output, "--judges", "refusal", "--out", f"{output}-eval"
    if not record["results"]["keeping"]:
        return "keep-report", output
    return ("merge", output, f"{output}-merged", *(("--method", "exact") if adapter == "monolora" else ()))


def main(
    argv: list[str] | None,
    flags_of: Callable[[list[str]], str],
    parse: Callable[[list[str]], Arguments],
    run: Callable[[Arguments], dict[str, Any]],
) -> int:
    """Run a program from the command line; returns the exit status.

    Args:
        argv: the words (default: those of the process).
        flags_of: the name of the set of flags that the words are of (:data:`monolora.recipes.training.command.COPIES`).
        parse: of the words.
        run: trains.
    """

    def program() -> int:
        words = sys.argv[1:] if argv is None else argv
        answer(words, read_copy(flags_of(words)))
        arguments = parse(words)
        record = run(arguments)
        if record and PartialState().is_main_process:
            Terminal().print(result_table([record]))
            if sets := (record["results"]["keeping"] or {}).get("sets"):
                Terminal().print(keeping_table({name: KeepingReport.of(values) for name, values in sets.items()}))
            output = str(arguments.training.output_dir)
            say(f"Saved to {output}: the model, README.md, run.json, training.png")
            suggest("monolora", *_next(record, output))
        return 0

    return exit_status(program)
