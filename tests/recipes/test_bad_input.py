"""Bad input to a run: one line that says what is wrong and the fix, status 2, and no output folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

Refused = Callable[..., str]

FLAGS = {
    "--lora-target-modules q_prj": ["matches no module", "q_proj"],
    "--lora-target-modules q_proj typo": ["--lora-target-modules typo matches no module"],
    "--lora-target-modules (": ["no regular expression"],
    "--adapter lora --lora-target-modules q_prj": ["matches no module", "q_proj"],
    "--lora-r 0": ["--lora-r must be at least 1, got 0"],
    "--lora-r -3": ["--lora-r must be at least 1, got -3"],
    "--lora-r eight": ["--lora-r", "'eight'"],
    "--lora-r 8.5": ["--lora-r", "'8.5'"],
    "--lora-alpha 0": ["--lora-alpha must be a number above 0"],
    "--lora-dropout 1": ["--lora-dropout must be at least 0 and below 1"],
    "--activation rlu": ["Unknown activation 'rlu'", "Did you mean 'relu'?"],
    "--activation topk:0": ["topk:0"],
    "--adapter monlora": ["Unknown --adapter 'monlora'", "Did you mean monolora?"],
    "--lora-rnk 4": ["Unknown flag --lora-rnk", "--lora-r"],
    "extra": ["'extra'", "flags begin with --"],
    "--learning-rate nan": ["--learning-rate must be a number above 0"],
    "--learning-rate -1": ["--learning-rate must be a number above 0"],
    "--num-train-epochs 0": ["--num-train-epochs must be a number above 0"],
    "--per-device-train-batch-size 0": ["--per-device-train-batch-size must be at least 1"],
    "--per-device-eval-batch-size 0": ["--per-device-eval-batch-size must be at least 1"],
    "--gradient-accumulation-steps 0": ["--gradient-accumulation-steps must be at least 1"],
    "--max-train-samples 0": ["--max-train-samples must be at least 1"],
    "--max-length 8": ["--max-length 8", "lose every trained token", "Raise --max-length"],
    "--max-length 0": ["--max-length must be at least 1"],
    "--seed -1": ["--seed must be between"],
    "--dtype float99": ["--dtype", "bfloat16"],
    "--report-to nonsense": ["nonsense", "tensorboard"],
    "--report-to comet_ml": ["comet"],
    "--eos-token <|nope|>": ["--eos-token <|nope|>", "</s>"],
    "--chat-template-path /nowhere.jinja": ["--chat-template-path /nowhere.jinja"],
    "--model ./nowhere": ["There is no model at ./nowhere"],
    "--model nobody/nothing": ["Cannot reach the hub for 'nobody/nothing'", "MONOLORA_DATA"],
    "--model smollm2-135m": ["Did you mean smollm2-135m-instruct?"],
    "--dataset ./nowhere.jsonl": ["There is no data set at ./nowhere.jsonl"],
    "--dataset nobody/nothing": ["Cannot reach the hub for 'nobody/nothing'", "MONOLORA_DATA"],
    "--dataset dmeo": ["Did you mean demo?"],
    "--dataset demo --dataset-train-split other": ["--dataset demo has its own splits"],
    "--config": ["--config needs a YAML file"],
    "--config /nowhere.yaml": ["Cannot read --config /nowhere.yaml"],
    "--resume-from-checkpoint": ["There is no checkpoint to resume from"],
    "--resume-from-checkpoint /nowhere": ["There is no checkpoint to resume from in /nowhere"],
    "--push-to-hub": ["--push-to-hub", "HF_TOKEN"],
    "--adapter none --load-in-4bit": ["Quantized weights cannot be trained"],
    "--adapter none --lora-r 4": ["--lora-r shapes an adapter"],
    "--adapter lora --activation relu": ["--activation is MonoLoRA's"],
    "--load-in-4bit --load-in-8bit": ["8 bit and 4 bit"],
    "--use-dora": ["--use-dora"],
    "--dataset demo --dataset-name sst2": ["--dataset and --dataset-name mean the same"],
    "--overwrite --resume-from-checkpoint": ["Keep one of them"],
    "--eval-strategy steps": ["--eval-strategy needs held-out rows", "--validation-samples"],
    "--eval-strategy sometimes": ["sometimes"],
    "--validation-samples 2 --eval-strategy steps --metric-for-best-model los": ["'los'", "Did you mean loss?"],
    "--validation-samples 2 --eval-strategy steps --metric-for-best-model accuracy": [
        "accuracy is not measured without --eval-task"
    ],
    "--validation-samples 2 --eval-strategy steps --metric-for-best-model refusal_margin": [
        "refusal_margin is not measured without --keep or --keep-report"
    ],
    "--validation-samples 2 --eval-strategy steps --load-best-model-at-end --save-steps 3 --eval-steps 2": [
        "--save-steps 3 is no multiple of --eval-steps 2. Make it one, or give --save-strategy best."
    ],
    "--validation-samples 2 --eval-strategy epoch --load-best-model-at-end": [
        "--eval-strategy is epoch, --save-strategy steps. Give both the same"
    ],
    "--validation-samples 2 --eval-strategy steps --eval-steps 0": ["--eval-steps must be a number above 0, got 0"],
    "--validation-samples 2 --eval-strategy epoch --eval-steps 2": ["no effect without --eval-strategy steps"],
    "--validation-samples 2 --eval-strategy steps --early-stopping-patience 0": ["at least 1"],
    "--validation-samples 2 --eval-strategy steps --early-stopping-threshold 0.1": ["--early-stopping-patience"],
    "--validation-samples 2 --eval-strategy steps --greater-is-better true": ["each metric says itself"],
    "--load-best-model-at-end": ["--load-best-model-at-end has no effect without --eval-strategy"],
    "--eval-task": ["--eval-task has no effect without --eval-strategy"],
    "--lr-scheduler-type reduce_lr_on_plateau": ["needs scores while training"],
    "--completion-only-loss false": ["answers only"],
    "--truncation-mode keep_end": ["--truncation-mode keep_end", "Leave it out"],
    "--optim lomo": ["lomo"],
    "--adam-beta1 2": ["beta"],
    "--lr-scheduler-type cosine_with_min_lr": ["min_lr"],
    '--lr-scheduler-kwargs {"a":1}': ["'a'"],
    "--lr-scheduler-kwargs {a": ["Cannot read '{a' as JSON"],
    "--gradient-checkpointing-kwargs a": ["--gradient-checkpointing-kwargs must be a mapping in JSON"],
    "--weight-decay -1": ["--weight-decay must be at least 0"],
    "--use-liger-kernel": ["--use-liger-kernel has no effect here"],
    "--lora-task-type SEQ_CLS": ["--lora-task-type has no effect here"],
    "--packing --packing-strategy bfd_split": ["bfd_split", "Use bfd or wrapped"],
    "--packing --packing-strategy wrapped --shuffle-dataset": ["--shuffle-dataset"],
    "--fsdp full_shard": ["fsdp"],
    "--eval-steps 5": ["--eval-steps has no effect without --eval-strategy"],
    "--metric-for-best-model loss": ["--metric-for-best-model has no effect without --eval-strategy"],
    "--do-train": ["--do-train has no effect here"],
    "--hub-strategy end": ["--hub-strategy has no effect here"],
    "--save-strategy best": ["--save-strategy best needs scores while training"],
    "--bnb-4bit-quant-type fp4": ["--bnb-4bit-quant-type has no effect without --load-in-4bit"],
    "--dataloader-persistent-workers": ["no effect without --dataloader-num-workers"],
    "--dataloader-multiprocessing-context spawn": ["no effect without --dataloader-num-workers"],
    "--packing-strategy wrapped": ["--packing-strategy has no effect without --packing"],
    '--gradient-checkpointing-kwargs {"use_reentrant":false}': ["no effect without --gradient-checkpointing"],
    "--early-stopping-patience 3": ["--early-stopping-patience has no effect without --eval-strategy"],
    "--group-by-length": ["Did you mean --train-sampling-strategy group_by_length?"],
    "--max_seq_length 512": ["Did you mean --max-length?"],
    "--evaluation_strategy epoch": ["Did you mean --eval-strategy?"],
    "--tokenizer a": ["The tokenizer is that of --model"],
    "--eval-stepps 3": ["Unknown flag --eval-stepps. Did you mean --eval-steps?"],
    "--do-evall": ["Unknown flag --do-evall. See --help."],  # the nearest would be refused
    "--max-steps 0": ["--max-steps must be at least 1, got 0"],
    "--max-steps -5": ["--max-steps must be at least 1, got -5"],
    "--max-train-samples 3": ["demo has 3 training examples, fewer than the 4 of a single step"],
    "--max-train-samples 7 --gradient-accumulation-steps 2": ["7 training examples, fewer than the 8"],
    "--packing --max-train-samples 4 --dataloader-drop-last --max-length 900": ["--dataloader-drop-last"],
    "--lora-modules-to-save lm_haed": ["--lora-modules-to-save lm_haed is no module", "lm_head"],
    "--lora-modules-to-save lm_head norm m_head": ["--lora-modules-to-save m_head is no module", "lm_head"],
    "--adapter lora --lora-modules-to-save embed_token": ["embed_token is no module", "embed_tokens"],
    "--adapter lora --lora-target-parameters q_proj.wieght": ["--lora-target-parameters q_proj.wieght", "weight"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Passing `fsdp` as a string")
@pytest.mark.parametrize(("flags", "says"), FLAGS.items(), ids=FLAGS)
def test_flags(refused: Refused, flags: str, says: list[str]) -> None:
    message = refused(*flags.split())
    assert all(part in message for part in says), message


CONFIGS = {
    "lora_rnk: 4": ["Unknown flag --lora_rnk", "--lora-r"],
    "lora_r: eight": ["lora_r must be a whole number, got 'eight'"],
    "lora_r: 8.5": ["lora_r must be a whole number, got 8.5"],
    "lora_r:": ["lora_r must be a whole number, got None"],
    "model: true": ["model cannot be true", "put quotes around it"],
    "save_strategy: no": ["save_strategy cannot be false", "put quotes around it"],
    "lora_r: 2020-01-02": ["lora_r must be a whole number, got datetime.date(2020, 1, 2)"],
    "model: {a: b}": ["model must be a single value, got {'a': 'b'}"],
    "label_names: [a]": ["--label-names has no effect here"],
    "max_seq_length: 5": ["Did you mean --max-length?"],
    "lora_r: [1, 2]": ["lora_r must be a whole number, got [1, 2]"],
    "lora_r: {a: 1}": ["lora_r must be a whole number"],
    "learning_rate: fast": ["learning_rate must be a number, got 'fast'"],
    "preview: maybe": ["preview must be true or false, got 'maybe'"],
    "dtype: float99": ["dtype must be one of auto"],
    "env: [1]": ["env must be a mapping"],
    "a: [1,\nb: }": ["is not YAML", "line 2"],
    "- a\n- b": ["must be a mapping"],
    "": ["must be a mapping"],
    "\0": ["is not YAML"],
}


@pytest.mark.parametrize(("text", "says"), CONFIGS.items(), ids=[repr(text) for text in CONFIGS])
def test_config_files(refused: Refused, tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    message = refused("--config", str(path))
    assert str(path) in message or "has no effect here" in message
    assert all(part in message for part in says), message


FILES = {
    "empty.jsonl": ("", ["is empty"]),
    "blank.jsonl": ("\n\n", ["is empty"]),
    "header.csv": ("instruction,output\n", ["is empty"]),
    "cut.jsonl": ('{"instruction": "a", "output"\n', ["Cannot read", "JSON parse error"]),
    "list.jsonl": ("[1, 2]\n[3]\n", ["Cannot read"]),
    "ragged.csv": ('instruction,output\n"a,2\n3,4,5,6\n', ["Cannot read"]),
    "columns.csv": ("a,b\n1,2\n3,4\n", ["has the columns a, b", "'instruction' + 'output'"]),
    "no.parquet": ("hello", ["Cannot read"]),
    "notes.txt": ("hello", ["files of type .txt are not read"]),
    "one.jsonl": ('{"instruction": "a", "output": "b"}\n', ["at least 2 are needed"]),
    "null.jsonl": (
        '{"instruction": "a", "output": "b"}\n{"instruction": null, "output": "b"}\n',
        ["row 2: 'instruction' must be a text, found nothing"],
    ),
    "number.jsonl": ('{"instruction": 3, "output": "b"}\n' * 3, ["row 1: 'instruction' must be a text", "type int"]),
    "noanswer.jsonl": ('{"messages": [{"role": "user", "content": "a"}]}\n' * 3, ["no assistant turn"]),
    "keys.jsonl": ('{"messages": [{"speaker": "user", "text": "a"}]}\n' * 3, ["a message needs a text 'role'"]),
    "string.jsonl": ('{"messages": "hello"}\n' * 3, ["'messages' must be a list of messages"]),
    "silent.jsonl": (
        '{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "a"}]}\n' * 3,
        ["a message needs a text 'content', found nothing"],
    ),
    "system.jsonl": (
        '{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "a"}]}\n' * 3,
        ["must follow a message of the role 'user', found 'system'"],
    ),
    "mixed.jsonl": (
        '{"prompt": "a", "completion": [{"role": "assistant", "content": "a"}]}\n' * 3,
        ["must both be texts, or both be lists"],
    ),
    "roles.jsonl": (
        '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "a"}]}\n' * 3,
        ["'completion' must be one message, with the role 'assistant'"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_data_files(refused: Refused, tmp_path: Path, name: str) -> None:
    text, says = FILES[name]
    (tmp_path / name).write_text(text)
    message = refused("--dataset", str(tmp_path / name))
    assert str(tmp_path / name) in message
    assert all(part in message for part in says), message


def test_split_that_is_not_there(refused: Refused, write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"instruction": "a", "output": "b"}] * 4)
    assert "choose one of train. Did you mean train?" in refused("--dataset", rows, "--dataset-train-split", "trian")
    assert "choose one of train." in refused("--dataset", rows, "--dataset-test-split", "test2")
    assert "is a file" in refused("--dataset", rows, "--dataset-config", "x")


def test_conversations_need_a_chat_template(
    refused: Refused, write_rows: Callable[..., str], plain_model: Path
) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 2
    message = refused("--dataset", write_rows([{"messages": turns}] * 4), model=plain_model)
    assert "no chat template" in message
    assert "--chat-template-path" in message


_TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
TEMPLATES = {
    "no such syntax": ("{{ bos_token }{% for", ["no working chat template"]),
    "no end token": (f"{{{{ bos_token }}}}{_TURNS}{{% endfor %}}", ["end token '</s>' is trained in no example"]),
    "two BOS": (f"{{{{ bos_token * 2 }}}}{_TURNS}{{{{ eos_token }}}}{{% endfor %}}", ["begins with '<s>' twice"]),
    "no BOS": (f"{_TURNS}{{{{ eos_token }}}}{{% endfor %}}", ["do not begin with '<s>'", "{{ bos_token }}"]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(refused: Refused, tmp_path: Path, name: str) -> None:
    template, says = TEMPLATES[name]
    (tmp_path / "template.txt").write_text(template)
    message = refused("--chat-template-path", str(tmp_path / "template.txt"))
    assert all(part in message for part in says), message


def test_text_that_brings_its_own_bos(refused: Refused, write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"prompt": "<s>good or bad?", "completion": " good"}] * 4)
    assert "begins with '<s>' twice" in refused("--dataset", rows)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _reconfigure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json is missing"]),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), ["config.json"]),
    "other architecture": (lambda folder: _reconfigure(folder, model_type="t5"), ["causal language model"]),
    "unknown architecture": (lambda folder: _reconfigure(folder, model_type="foo"), ["foo"]),
    "weights are cut off": (_cut, ["Cannot load a causal language model"]),
    "a weight is missing": (_drop_tensor, ["lack model.norm.weight (1 such)"]),
    "weights of another size": (lambda folder: _reconfigure(folder, intermediate_size=96), ["do not fit model.layers"]),
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("tokenizer*")], ["no usable tokenizer"]),
    "tokenizer is no JSON": (lambda folder: (folder / "tokenizer.json").write_text("{"), ["no usable tokenizer"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_damaged_models(refused: Refused, chat_model: Path, tmp_path: Path, name: str) -> None:
    damage, says = MODELS[name]
    folder = tmp_path / "model"
    folder.mkdir()
    for file in chat_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    message = refused(model=folder)
    assert all(part in message for part in says), message


def test_output_folder_that_cannot_be(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    says = {tmp_path / "file" / "run": "cannot be made", Path("/proc/nowhere/run"): "cannot be made"}
    for place, why in (says | {tmp_path / "file": "exists and is no run"}).items():
        outcome = run_sft("--output-dir", str(place))
        assert outcome.status == 2
        assert f"--output-dir {place} {why}" in outcome.err[-1]


def test_refusal_removes_only_what_it_made(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_sft("--output-dir", str(tmp_path / "a" / "b"), "--max-length", "8")
    assert outcome.status == 2
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    assert run_sft("--output-dir", str(tmp_path / "a" / "b"), "--max-length", "8").status == 2
    assert list((tmp_path / "a").iterdir()) == []


def test_a_name_in_another_encoding(refused: Refused) -> None:
    assert "caf\\xe9.jsonl is not UTF-8. Rename it" in refused("--dataset", "caf\udce9.jsonl")


def test_files_in_another_encoding(refused: Refused, tmp_path: Path) -> None:
    for name, flag in (("flags.yaml", "--config"), ("template.jinja", "--chat-template-path")):
        (tmp_path / name).write_bytes("# one\n# café\n".encode("latin-1"))
        assert f"{name}, line 2: the byte 0xe9 is not UTF-8" in refused(flag, str(tmp_path / name))


def test_a_tokenizer_that_is_larger_than_the_model(refused: Refused, tmp_path: Path, chat_model: Path) -> None:
    larger = shutil.copytree(chat_model, tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(larger)
    embeddings = json.loads((larger / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(embeddings - len(tokenizer) + 1)])
    tokenizer.save_pretrained(larger)
    message = refused(model=larger)
    assert f"with the id {embeddings}, and the model has {embeddings:,} embeddings" in message
