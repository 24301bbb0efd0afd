"""Keepers by name: monolora's own, of entry points, and of files; the example in a training run."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from monolora import MonoLoraConfig, keep
from monolora.data.chat_template import IGNORED
from monolora.errors import InputError
from monolora.keep import parse_keepers
from monolora.keep.anchors import Anchors
from monolora.keep.keeper import Keeper, Preparation
from tests.support.keeping import TOKENIZER, tiny_llama

EXAMPLE = Path(keep.__file__).parents[2] / "recipes" / "study" / "first_tokens.py"
MINE = """
from dataclasses import dataclass
from monolora.keep.keeper import Keeper
@dataclass
class Part:
    x: int
class Mine(Keeper):
    name = "mine"
    default_weight = 0.5
class Nameless(Keeper):
    default_weight = 1.0
class Other:
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my keepers.py"
    path.write_text(MINE)
    return path


def test_names_and_weights(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["silence", "kl:0.5", "none", f"{file}:Mine"]
    assert [(k.name, k.weight) for k in parse_keepers(words)] == [("silence", 0.3), ("kl", 0.5), ("mine", 0.5)]
    assert parse_keepers([f"{file}:Mine:2"])[0].weight == 2
    point = EntryPoint("installed", f"{Path(__file__).stem}:Installed", "monolora.keepers")
    monkeypatch.setattr(EntryPoint, "load", lambda self: _Installed)
    monkeypatch.setattr(keep, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    assert parse_keepers(["installed:3"])[0].weight == 3
    with pytest.raises(InputError, match="choose one of silence, replay, kl, installed, none"):
        parse_keepers(["instaled:3"])


class _Installed(Keeper):
    name = "installed"
    default_weight = 1.0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.py:Mine", "there is no file nowhere.py. Give FILE.py:CLASS"),
        ("FILE:Mime", "Unknown class in --keep .*Did you mean Mine"),
        ("FILE:Other", "is no subclass of monolora.keep.keeper.Keeper"),
        ("FILE:Nameless", "has no name. Set"),
        ("FILE:Mine:x", "the weight must be a number above 0, got 'x'"),
        ("FILE:", "Unknown class in --keep"),
    ],
)
def test_what_is_no_keeper(file: Path, word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_keepers([word.replace("FILE", str(file))])


def test_a_file_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(InputError, match=r"broken.py cannot be imported: No module named 'nothing_of_that_name'"):
        parse_keepers([f"{path}:Mine"])
    with pytest.raises(InputError, match="is given twice"):
        parse_keepers([f"{EXAMPLE}:FirstTokens", f"{EXAMPLE}:FirstTokens:2"])


def test_the_example_constrains_the_first_tokens_of_answers() -> None:
    """Nothing to pay for the base; else the mean of squared log-ratios, here by the models' own logits."""
    (keeper,) = parse_keepers([f"{EXAMPLE}:FirstTokens:2"])
    torch.manual_seed(0)
    ids = torch.randint(3, 64, (6, 12)).tolist()
    labels = [[IGNORED] * (3 + i) + row[3 + i :] for i, row in enumerate(ids)]
    labels[5] = [IGNORED] * 12
    model = get_peft_model(tiny_llama(), MonoLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    keeper.prepare(
        Preparation(
            model=model, tokenizer=TOKENIZER, anchors=Anchors(train=(), held_out=()),
            task_rows=Dataset.from_dict({"input_ids": ids, "labels": labels}), seed=0, batch_size=4, tokens=100,
            first_tokens=None, base="",
        )
    )  # fmt: skip
    loss = keeper.loss(model, 0)
    assert loss is not None
    assert abs(loss.item()) < 1e-9
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=30)
    ratios = []
    for i in range(5):
        at = slice(2 + i, min(7 + i, 11))
        for_token = torch.tensor(ids[i][3 + i : 8 + i])[:, None]
        with torch.no_grad():
            now = model(input_ids=torch.tensor([ids[i]])).logits[0, at].log_softmax(-1).gather(-1, for_token)
            with model.disable_adapter():
                base = model(input_ids=torch.tensor([ids[i]])).logits[0, at].log_softmax(-1).gather(-1, for_token)
        ratios.append((now - base).square()[:, 0])
    losses = [keeper.loss(model, step) for step in (0, 1)]  # of four rows, and of the fifth
    numbers = [sum(len(row.answer) for row in keeper.beginnings[part]) for part in (slice(4), slice(4, 8))]  # type: ignore[attr-defined]
    total = sum(loss.item() * number for loss, number in zip(losses, numbers, strict=True) if loss is not None)
    assert total == pytest.approx(2 * float(torch.cat(ratios).sum()), rel=1e-4)
