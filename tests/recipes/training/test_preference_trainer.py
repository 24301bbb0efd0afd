"""The preference trainers against TRL's own: tokens, losses, the reference, keepers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.utils import add_fused_lm_head

from monolora import MonoLoraConfig
from monolora.data.preference_tasks import load_preferences
from monolora.data.preferences import Preference
from monolora.data.task import Source
from monolora.errors import InputError
from monolora.recipes.training.preference_rows import judged_rows, pair_rows
from monolora.recipes.training.preference_trainer import JudgedTrainer, PairTrainer, _check_balance
from tests.support.conversations import TEMPLATES
from tests.support.preferences import JUDGED, PAIRS, TEXTS, WHOLE

Write = Callable[..., str]
SIZES = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
ADAPTERS = {"monolora": MonoLoraConfig(**SIZES), "lora": LoraConfig(**SIZES), "none": None}


def _read(write_rows: Write, rows: list[dict[str, Any]], name: str = "data") -> list[Preference]:
    """In the order of the file: what is held out comes from a copy."""
    path = Path(write_rows(rows)).parent / name
    path.mkdir()
    for split in ("train", "test"):
        write_rows(rows, f"{name}/{split}.jsonl")
    return load_preferences(str(path), Source()).train


def _settings(kind: type[Any], folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=3, learning_rate=0.02, bf16=False,
        logging_steps=1, gradient_checkpointing=False, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", **{"train_sampling_strategy": "sequential", **more},
    )  # fmt: skip


def _trainer(kind: Any, model: Path, tokenizer: PreTrainedTokenizerBase, rows: Any, folder: Path, **more: Any) -> Any:
    config = KTOConfig if issubclass(kind, KTOTrainer) else DPOConfig
    adapter = more.pop("adapter", None)
    reference = {"ref_model": AutoModelForCausalLM.from_pretrained(model)} if adapter is None else {}
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model), args=_settings(config, folder, **more), train_dataset=rows,
        processing_class=tokenizer, peft_config=adapter, **reference,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "template"), [(PAIRS, ""), (PAIRS, "chatml"), (PAIRS, "gemma"), (WHOLE, "llama"), (TEXTS, "")]
)
def test_pairs_are_tokenized_as_by_trl(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path,
    rows: list[dict[str, Any]], template: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if template:
        monkeypatch.setattr(chat_tokenizer, "chat_template", TEMPLATES[template])
    ours = pair_rows(_read(write_rows, rows), chat_tokenizer, None, None).rows
    theirs = _trainer(DPOTrainer, chat_model, chat_tokenizer, Dataset.from_list(rows), tmp_path).train_dataset
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()
    ends = (ids[-2:] for side in ("chosen_ids", "rejected_ids") for ids in ours[side])  # a newline may follow
    assert all(chat_tokenizer.eos_token_id in end for end in ends)


def test_judged_answers_are_tokenized_as_by_trl(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path
) -> None:
    """Answers of other rows, of which KTO estimates the KL, included."""
    made = judged_rows(_read(write_rows, JUDGED), chat_tokenizer, None, None, 7)
    ours = _trainer(JudgedTrainer, chat_model, chat_tokenizer, made.rows, tmp_path).train_dataset
    Random(7).shuffle(shuffled := list(JUDGED))
    theirs = _trainer(KTOTrainer, chat_model, chat_tokenizer, Dataset.from_list(shuffled), tmp_path).train_dataset
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()
    assert "KL_completion_ids" in ours.column_names


def test_pairs_taken_apart_are_the_judged_answers(chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write) -> None:
    """Mixed by the seed: TRL would put all chosen answers first, and KTO takes rows in their order."""
    of_pairs, of_answers = (
        judged_rows(_read(write_rows, rows, name), chat_tokenizer, None, None, 3).rows.to_list()
        for name, rows in (("pairs", PAIRS), ("judged", JUDGED))
    )
    assert of_pairs == of_answers
    labels = [row["label"] for row in of_pairs]
    assert sorted(labels) == [False] * len(PAIRS) + [True] * len(PAIRS)
    assert 4 < sum(labels[: len(PAIRS)]) < len(PAIRS) - 4


def _losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("kind", "theirs"), [(PairTrainer, DPOTrainer), (JudgedTrainer, KTOTrainer)])
def test_identity_learns_as_lora_does_in_trls_own_trainer(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path, kind: Any, theirs: Any
) -> None:
    """MonoLoRA without a nonlinearity here, stock LoRA there, from the same A: three steps of one loss."""
    preferences = _read(write_rows, PAIRS)
    Random(7).shuffle(judged := list(JUDGED))
    made = (
        pair_rows(preferences, chat_tokenizer, None, None)
        if kind is PairTrainer
        else judged_rows(preferences, chat_tokenizer, None, None, 7)
    )
    identity = MonoLoraConfig(**SIZES, activation="identity")
    here = _trainer(kind, chat_model, chat_tokenizer, made.rows, tmp_path, adapter=identity)
    rows = Dataset.from_list(PAIRS if kind is PairTrainer else judged)
    there = _trainer(theirs, chat_model, chat_tokenizer, rows, tmp_path, adapter=LoraConfig(**SIZES))
    copied = {name.replace("monolora_", "lora_"): value for name, value in _trained(here.model).items()}
    for name, value in _trained(there.model).items():
        value.data.copy_(copied[name])
    expected = _losses(there)
    assert _losses(here) == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 4) for loss in expected}) == 3


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_reference_is_the_base_bit_for_bit(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path, adapter: str
) -> None:
    """After training too: TRL's reference pass gives what an untouched copy of the base gives."""
    rows = pair_rows(_read(write_rows, PAIRS), chat_tokenizer, None, None).rows
    trainer = _trainer(PairTrainer, chat_model, chat_tokenizer, rows, tmp_path, adapter=ADAPTERS[adapter])
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    reference = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
    untouched = _trainer(PairTrainer, chat_model, chat_tokenizer, rows, tmp_path)  # no adapter: a base, and a reference
    expected = untouched.compute_ref_log_probs(untouched.model, batch)
    assert all(map(torch.equal, reference, expected))
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, start[name])}
    assert changed
    assert changed <= set(_trained(trainer.model))
    if trainer.ref_model is not None:
        weights = load_file(chat_model / "model.safetensors")
        assert all(torch.equal(trainer.ref_model.get_parameter(name), value) for name, value in weights.items())


CONTINUED: dict[str, Any] = {
    "monolora": MonoLoraConfig(**SIZES),
    "saved modules": MonoLoraConfig(**SIZES | {"modules_to_save": ["lm_head"]}),
    "embedding": MonoLoraConfig(**SIZES | {"target_modules": ["embed_tokens", "q_proj"]}),
    "trained tokens": LoraConfig(**SIZES | {"trainable_token_indices": [1, 7, 9]}),
}


def _start(model: Path, folder: Path, config: Any) -> Callable[..., Any]:
    """Loads the base with an adapter of random weights, as PEFT does it."""
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for parameter in _trained(made).values():
            parameter += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    return lambda: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder, is_trainable=True)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("kind", CONTINUED)
def test_the_reference_of_an_adapter_that_goes_on_is_its_start(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path, kind: str,
    precompute: bool,
) -> None:  # fmt: skip
    """Whatever it trains: the first loss is that of no difference, and after training the reference is the start."""
    load = _start(chat_model, tmp_path / "start", CONTINUED[kind])
    rows = pair_rows(_read(write_rows, PAIRS), chat_tokenizer, None, None).rows
    settings = _settings(DPOConfig, tmp_path / "run", precompute_ref_log_probs=precompute)
    trainer = PairTrainer(model=load(), args=settings, train_dataset=rows, processing_class=chat_tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    keys = ("ref_chosen_logps", "ref_rejected_logps")
    assert _losses(trainer)[0] == pytest.approx(math.log(2))
    alone = _trainer(PairTrainer, chat_model, chat_tokenizer, rows, tmp_path)  # whose model is the reference of another
    expected = alone.compute_ref_log_probs(alone.accelerator.prepare_model(_headed(load())), batch)
    for name, value in zip(keys, expected, strict=True):
        if precompute:
            torch.testing.assert_close(batch[name], value)
    assert all(map(torch.equal, trainer.compute_ref_log_probs(trainer.model, batch), expected))
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists()
    saved, start = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("saved", "start"))
    assert saved.keys() == start.keys()


def _headed(model: Any) -> Any:
    """With the fused head that TRL gives its models."""
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.eval()


@pytest.mark.parametrize(("kind", "theirs"), [(PairTrainer, DPOTrainer), (JudgedTrainer, KTOTrainer)])
def test_an_adapter_goes_on_as_in_trls_own_trainer(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path, kind: Any, theirs: Any
) -> None:
    """A PeftModel without a reference model: TRL's own meaning of it."""
    load = _start(chat_model, tmp_path / "start", CONTINUED["monolora"])
    preferences = _read(write_rows, PAIRS)
    Random(7).shuffle(judged := list(JUDGED))
    is_pairs = kind is PairTrainer
    made = (
        pair_rows(preferences, chat_tokenizer, None, None)
        if is_pairs
        else judged_rows(preferences, chat_tokenizer, None, None, 7)
    )
    config = DPOConfig if is_pairs else KTOConfig
    rows = Dataset.from_list(PAIRS if is_pairs else judged)
    here = kind(
        model=load(), args=_settings(config, tmp_path), train_dataset=made.rows, processing_class=chat_tokenizer
    )
    there = theirs(model=load(), args=_settings(config, tmp_path), train_dataset=rows, processing_class=chat_tokenizer)
    expected = _losses(there)
    assert _losses(here) == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 4) for loss in expected}) == 3


def test_rows_of_one_length_come_together(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write, tmp_path: Path
) -> None:
    rows = pair_rows(_read(write_rows, PAIRS), chat_tokenizer, None, None).rows
    more = {"train_sampling_strategy": "group_by_length"}
    trainer = _trainer(PairTrainer, chat_model, chat_tokenizer, rows, tmp_path, adapter=ADAPTERS["lora"], **more)
    lengths = trainer.row_lengths(rows)
    assert lengths[0] == len(rows[0]["prompt_ids"]) + max(len(rows[0]["chosen_ids"]), len(rows[0]["rejected_ids"]))
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(rows)))
    batches = [[lengths[index] for index in order[start : start + 4]] for start in range(0, len(order), 4)]
    assert sum(max(batch) - min(batch) for batch in batches) < sum(max(lengths) - min(lengths) for _ in batches)


def test_truncation_drops_what_it_leaves_nothing_of(chat_tokenizer: PreTrainedTokenizerBase, write_rows: Write) -> None:
    """The answers of a pair may be the same once they are cut, and then teach nothing."""
    start = "The one and only answer to this begins like that"
    rows = [{"prompt": "Tell me. ", "chosen": f"{start}, yes.", "rejected": f"{start}, no."}, *TEXTS, *TEXTS]
    preferences = _read(write_rows, rows)
    whole = pair_rows(preferences, chat_tokenizer, None, None)
    assert (whole.examples, len(whole.rows), *whole.truncation) == (33, 33, 0, 0)
    lengths = [len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in whole.rows]
    limit = lengths[0] - 8
    with pytest.warns(UserWarning, match=r"1 of 33 examples have nothing of an answer left, or the same of both"):
        cut = pair_rows(preferences, chat_tokenizer, limit, None)
    assert (cut.examples, len(cut.rows), cut.truncation.dropped) == (33, 32, 1)
    with pytest.raises(InputError, match=r"33 of 33 examples .* Raise --max-length"):
        pair_rows(preferences, chat_tokenizer, 2, None)


@pytest.mark.parametrize(("desirable", "weight"), [(5, 1.0), (5, 2.0), (9, 1.0)])
def test_labels_that_do_not_weigh_alike_are_warned_of(desirable: int, weight: float) -> None:
    """And with the weight that is recommended there is no warning."""
    with pytest.warns(UserWarning, match=f"{desirable} of 12 answers are desirable") as caught:
        _check_balance(desirable, 12, KTOConfig("", bf16=False, desirable_weight=weight))
    recommended = float(str(caught[0].message).split()[-1].rstrip("."))
    _check_balance(desirable, 12, KTOConfig("", bf16=False, desirable_weight=1.05 * recommended))
