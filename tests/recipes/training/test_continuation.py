"""``--adapter-from``: against PEFT and TRL by hand, for every kind of adapter; the record, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from monolora import MonoLoraConfig
from monolora.data.chat_template import render_all
from monolora.data.tasks import load_task
from monolora.errors import InputError
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.continuation import settings_of
from monolora.recipes.training.data import read_data
from monolora.recipes.training.models import load_model, make_trainer, peft_config
from tests.support.program_runs import QUICK
from tests.support.tiny_chat import CHAT_TEMPLATE

Run = Callable[..., Any]
SIZES: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "relu": MonoLoraConfig(**SIZES),
    "topk": MonoLoraConfig(**SIZES | {"activation": "topk:2", "use_rslora": True}),
    "saved modules": MonoLoraConfig(**SIZES | {"modules_to_save": ["lm_head"]}),
    "embedding": MonoLoraConfig(**SIZES | {"target_modules": ["embed_tokens", "q_proj"]}),
    "lora": LoraConfig(**SIZES | {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}}),
    "trained tokens": LoraConfig(**SIZES | {"trainable_token_indices": [1, 7, 9]}),
    "dora": LoraConfig(**SIZES | {"use_dora": True, "target_modules": r".*\.0\..*(q|down)_proj"}),
    "one layer": LoraConfig(**SIZES | {"layers_to_transform": [1]}),
}
# Steps that rounding does not reorder, in the order of the rows.
STEPS = [
    *QUICK, "--optim", "sgd", "--learning-rate", "0.5", "--train-sampling-strategy", "sequential", "--max-steps", "3",
]  # fmt: skip


def _made(model: Path, folder: Path, config: Any) -> Path:
    """An adapter as PEFT saves it, with random weights."""
    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_as_by_peft_and_trl(chat_model: Path, tmp_path: Path, run_sft: Run, kind: str) -> None:
    start = _made(chat_model, tmp_path / "start", KINDS[kind])
    outcome = run_sft(*STEPS, "--adapter-from", str(start), "--skip-eval")
    assert outcome.status == 0, outcome.err
    arguments = parse(["--model", str(chat_model), *STEPS, "--output-dir", str(tmp_path / "by-hand")])
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    rows = render_all(read_data(arguments, load_task).train, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    first = rows[:4]  # of the first step
    trained = [sum(label != -100 for label in labels) for labels in first["labels"]]
    losses = [
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        for ids, labels in zip(first["input_ids"], first["labels"], strict=True)
    ]
    mean = sum(loss * count for loss, count in zip(losses, trained, strict=True)) / sum(trained)
    assert outcome.losses[0] == pytest.approx(mean, rel=1e-4)
    trainer = SFTTrainer(model=model, args=arguments.training, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "by-hand"))
    ours, theirs = _weights(outcome.folder), _weights(tmp_path / "by-hand")
    assert ours.keys() == theirs.keys() == _weights(start).keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
    assert not _same(ours, _weights(start))
    made, goes_on = settings_of(str(start)), settings_of(str(outcome.folder))
    assert {name for name in made if made[name] != goes_on[name]} <= {"lora_target_modules"}  # a pattern is resolved


def test_a_run_goes_on_from_another(chat_model: Path, run_sft: Run) -> None:
    """Scores before are those of its end; it is resumed bit for bit; record and card name it."""
    first = run_sft("--lora-r", "4", "--activation", "topk:2", "--lora-alpha", "6", "--save-steps", "2", name="first")
    flags = ("--adapter-from", str(first.folder), "--save-steps", "2")
    second = run_sft(*flags, name="second")
    assert second.status == 0, second.err
    record = second.record
    assert record["results"]["before"] == first.record["results"]["after"]
    config = record["config"]
    assert [config[name] for name in ("adapter", "activation", "lora_r", "lora_alpha", "model")] == [
        "monolora", "topk:2", 4, 6, str(chat_model)
    ]  # fmt: skip
    card = (second.folder / "README.md").read_text()
    assert (
        f"Trained further from the adapter `{first.folder}` (fingerprint {record['fingerprints']['adapter']})" in card
    )
    again = run_sft(*flags, "--resume-from-checkpoint", str(second.folder / "checkpoint-2"), name="again")
    assert again.status == 0, again.err
    assert _same(_weights(again.folder), _weights(second.folder))
    assert again.losses == second.losses
    whole = run_sft("--adapter-from", str(first.folder / "checkpoint-4"), name="whole")
    assert _same(_weights(whole.folder), _weights(second.folder))
    weights = first.folder / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    refused = run_sft(*flags, "--resume-from-checkpoint", str(second.folder / "checkpoint-2"), name="refused")
    assert refused.status == 2
    assert "The weights of --adapter-from have changed since" in refused.err[-1]


def test_a_base_by_its_id(chat_model: Path, tmp_path: Path, run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT finds its config on the disk, without asking the hub, and the id is what is saved."""
    shutil.copytree(chat_model, tmp_path / "mirror" / "org" / "tiny")
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path / "mirror"))
    start = run_sft("--model", "org/tiny", name="start").folder
    ended = run_sft("--model", "org/tiny", "--adapter-from", str(start), name="further")
    assert ended.status == 0, ended.err
    for folder in (start, ended.folder):
        saved = json.loads((folder / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == "org/tiny"


def test_the_tokenizer_of_the_adapter_goes_on(chat_model: Path, tmp_path: Path, run_sft: Run) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("[", "<").replace("]", ">"))
    first = run_sft("--chat-template-path", str(template), "--skip-eval", name="first")
    assert first.status == 0, first.err
    second = run_sft("--adapter-from", str(first.folder), "--skip-eval", name="second")
    assert second.status == 0, second.err
    assert AutoTokenizer.from_pretrained(second.folder).chat_template == template.read_text()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_tokens_that_the_adapter_added(chat_model: Path, tmp_path: Path, run_sft: Run) -> None:
    """As PEFT saves them: the resized embeddings are in the adapter's file."""
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.add_tokens(["<mine>"])
    base.resize_token_embeddings(len(tokenizer))
    get_peft_model(base, MonoLoraConfig(**SIZES)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    outcome = run_sft("--adapter-from", str(tmp_path / "start"), "--skip-eval")
    assert outcome.status == 0, outcome.err
    assert _weights(outcome.folder).keys() == _weights(tmp_path / "start").keys()


def _parse(*words: str) -> Any:
    return parse([*words, "--output-dir", "runs/x"])


def test_settings_are_those_of_the_adapter(chat_model: Path, tmp_path: Path) -> None:
    """Flags that say the same are taken; the base is found without a flag."""
    start = str(_made(chat_model, tmp_path / "start", KINDS["lora"]))
    for words in (
        (),
        ("--adapter", "lora", "--lora-r", "4", "--lora-target-modules", "v_proj", "q_proj"),
        ("--rank-pattern", '{"v_proj": 2}', "--model", str(chat_model)),
        ("--model", f"/elsewhere/{chat_model.name}"),  # its shapes are checked when it is loaded
    ):
        arguments = _parse("--adapter-from", start, *words)
        assert (arguments.model.lora_r, arguments.model.lora_alpha) == (4, 6)
        assert (arguments.adapter.adapter, arguments.model.rank_pattern) == ("lora", {"v_proj": 2})
        assert peft_config(arguments) == LoraConfig.from_pretrained(start)
    assert _parse("--adapter-from", start).adapter.model == str(chat_model)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lora-r 8", "--lora-r 8 contradicts --adapter-from {start}, which has 4. Leave it out."),
        ("--lora-target-modules q_proj", "--lora-target-modules q_proj contradicts"),
        ("--lora-modules-to-save lm_head", "which has None"),
        ("--adapter lora", "--adapter lora contradicts --adapter-from {start}, which has monolora"),
        ("--activation identity", "--activation identity contradicts --adapter-from {start}, which has relu"),
        ("--model other/base", "--model other/base contradicts"),
        ("--model-name-or-path other/base", "--model other/base contradicts"),
        ("--adapter none", "To train all weights further, give the folder of the model with --model."),
    ],
)
def test_flags_that_contradict_it(chat_model: Path, tmp_path: Path, words: str, says: str) -> None:
    start = str(_made(chat_model, tmp_path / "start", KINDS["relu"]))
    with pytest.raises(InputError) as error:
        _parse("--adapter-from", start, *words.split())
    assert says.format(start=start) in str(error.value)


def _edited(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def _unfinished(folder: Path) -> None:
    shutil.copytree(folder, folder / "checkpoint-12")
    (folder / "adapter_config.json").unlink()


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "holds no adapter: adapter_config.json is missing"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no weights"),
    "unfinished": (_unfinished, "holds no adapter yet, but checkpoints. Give one, such as {start}/checkpoint-12"),
    "classifier": (lambda folder: _edited(folder, task_type="SEQ_CLS"), "is made for SEQ_CLS"),
    "pissa": (lambda folder: _edited(folder, init_lora_weights="pissa"), "initialised by pissa"),
    "no base": (lambda folder: _edited(folder, base_model_name_or_path=None), "names no base model. Give it with"),
}


@pytest.mark.parametrize("name", WRONG)
def test_folders_that_cannot_be_trained_further(chat_model: Path, tmp_path: Path, name: str) -> None:
    start = _made(chat_model, tmp_path / "start", KINDS["lora"])
    damage, says = WRONG[name]
    damage(start)
    with pytest.raises(InputError) as error:
        _parse("--adapter-from", str(start))
    assert says.format(start=start) in str(error.value)


def test_other_methods_and_whole_models(chat_model: Path, tmp_path: Path) -> None:
    ia3 = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    start = _made(chat_model, tmp_path / "start", ia3)
    with pytest.raises(InputError, match=r"is of method IA3. Give a LoRA or MonoLoRA adapter"):
        _parse("--adapter-from", str(start))
    with pytest.raises(InputError, match=rf"holds a whole model. Train it further with --model {chat_model} --adapter"):
        _parse("--adapter-from", str(chat_model))


def test_a_base_of_other_weights(chat_model: Path, tmp_path: Path, run_sft: Run, refused: Callable[..., str]) -> None:
    first = run_sft("--skip-eval", "--save-steps", "2", name="first")
    other = Path(shutil.copytree(chat_model, tmp_path / "other" / chat_model.name))
    weights = other / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    for start in (first.folder, first.folder / "checkpoint-2"):
        says = refused("--adapter-from", str(start), model=other)
        assert f"--adapter-from {start} was trained on other weights than those of {other}" in says


def test_an_adapter_that_does_not_fit(chat_model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    start = _made(chat_model, tmp_path / "start", KINDS["relu"])
    path = start / "adapter_model.safetensors"
    save_file({name: tensor[:3, :3].contiguous() for name, tensor in load_file(path).items()}, path)
    assert f"{start} does not fit {chat_model}" in refused("--adapter-from", str(start))


def test_a_run_does_not_replace_its_own_start(run_sft: Run) -> None:
    first = run_sft("--skip-eval", "--save-steps", "2")
    outcome = run_sft("--adapter-from", str(first.folder / "checkpoint-2"), "--skip-eval", "--overwrite")
    assert outcome.status == 2
    assert f"holds {first.folder}/checkpoint-2, which the run is made from" in outcome.err[-1]


def test_an_adapter_stays_whole_when_it_is_tried(chat_model: Path, tmp_path: Path) -> None:
    """Making a trainer writes nothing into the adapter's folder."""
    start = _made(chat_model, tmp_path / "start", KINDS["relu"])
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    arguments = parse(["--adapter-from", str(start), *STEPS, "--output-dir", str(tmp_path / "run")])
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    rows = render_all(read_data(arguments, load_task).train, tokenizer)
    model = load_model(str(chat_model), arguments)
    trainer = make_trainer(model, tokenizer, peft_config(arguments), rows, arguments)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(_weights(start))
    assert before == {path.name: path.read_bytes() for path in start.iterdir()}
