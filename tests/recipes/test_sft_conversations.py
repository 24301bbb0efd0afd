"""``monolora sft`` on conversations: in one pass and one answer at a time, the same training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.conversations import CHATML, assistant, user
from tests.support.merge_runs import Ended
from tests.support.program_runs import Outcome

SYSTEM = {"role": "system", "content": "be short and good " * 5}  # a prefix that is worth being shared
ADAPTER = "adapter_model.safetensors"
CHATS = [
    {
        "messages": [
            SYSTEM,
            *(turn for k in range(3) for turn in (user(f"say {row} {k}"), assistant(f"{'good ' * row}{k}"))),
        ]
    }
    for row in range(10)
]
ALL = ("--max-train-samples", "100", "--skip-eval")
ONE_STEP = (*ALL, "--max-steps", "1", "--optim", "sgd", "--max-grad-norm", "0", "--learning-rate", "1")
REPLAY = ("--keep", "replay:0.3", "--keep-samples", "20", "--keep-answer-tokens", "4")
# The first answers lose their end once more follow.
DIFFERS = CHATML.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and loop.last %}")


@pytest.fixture
def chats(write_rows: Callable[..., str]) -> str:
    """Ten conversations of three answers, of which one is held out."""
    return write_rows(CHATS, "chats.jsonl")


@pytest.fixture
def differs(tmp_path: Path) -> str:
    """A template that renders earlier turns otherwise."""
    path = tmp_path / "differs.jinja"
    path.write_text(DIFFERS)
    return str(path)


@pytest.mark.filterwarnings("ignore:.* of 27 examples lose every trained token")
@pytest.mark.parametrize("flags", [(), ("--adapter", "none"), ("--full-logits",), ("--max-length", "160"), REPLAY])
def test_a_step_is_that_of_one_answer_at_a_time(
    run_sft: Callable[..., Outcome],
    chats: str,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The mean over the step's answer tokens, through whatever path computes it; cut at a limit, too."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    step = "39" if flags == REPLAY else "27"  # answers
    flags = ("--dataset", chats, *ONE_STEP, "--per-device-train-batch-size", step, *flags)
    if "--adapter" not in flags:  # so that the first step moves A, and B is not what it was made
        flags = (*flags, "--init-lora-weights", "false")
    together = run_sft(*flags, "--conversations", "whole", name="together")
    alone = run_sft(*flags, "--conversations", "split", "--full-logits", name="alone")
    assert (together.status, alone.status) == (0, 0), (together.err, alone.err)
    rows, expected = together.record["rows"], alone.record["rows"]
    assert (rows["sequences"], "sequences" in expected) == (9, False)
    for name in ("examples", "dropped", "truncated", "end_token_trained", "test"):
        assert rows[name] == expected[name]
    assert rows["examples"] == 27
    assert rows.get("replayed") == expected.get("replayed")
    assert (rows["dropped"] > 0) == ("--max-length" in flags)
    assert together.losses == [pytest.approx(alone.losses[0], rel=1e-5)]
    file = ADAPTER if (together.folder / ADAPTER).is_file() else "model.safetensors"
    weights = [load_file(run.folder / file) for run in (together, alone)]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-5, atol=1e-5)


def test_it_is_the_default_and_says_so(run_sft: Callable[..., Outcome], chats: str) -> None:
    outcome = run_sft("--dataset", chats, *ALL, "--preview")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    assert "27 examples, 27 trained on in 9 sequences; 3 held out." in text
    assert "not trained on in one sequence" not in text
    assert text.count("⟦") == 3 * 3 + 3  # and the title of each says what they mean
    assert not outcome.folder.exists()


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed(run_sft: Callable[..., Outcome], chats: str, strategy: str) -> None:
    flags = ("--dataset", chats, *ALL, "--packing", "--packing-strategy", strategy, "--max-length", "400")
    outcome = run_sft(*flags)
    assert outcome.status == 0, outcome.err
    rows = outcome.record["rows"]
    assert (rows["examples"], rows["sequences"], rows["end_token_trained"]) == (27, 9, 1)
    assert rows["train"] < 9


def test_a_template_whose_turns_differ(
    run_sft: Callable[..., Outcome], refused: Callable[..., str], chats: str, differs: str
) -> None:
    """One answer at a time, with the reason; or, if one sequence was asked for, refused."""
    flags = ("--dataset", chats, *ALL, "--chat-template-path", differs)
    outcome = run_sft(*flags, "--preview")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    assert "27 examples, 27 trained on; 3 held out." in text
    assert "not trained on in one sequence: 9 (the first is" in text
    assert "renders an earlier turn otherwise once more follow." in text
    message = refused(*flags, "--conversations", "whole")
    assert "has no {% generation %} marks" in message
    assert "--chat-template-path" in message


def test_the_last_answers(run_sft: Callable[..., Outcome], chats: str) -> None:
    outcome = run_sft("--dataset", chats, *ALL, "--train-on", "last", "--preview")
    text = " ".join(outcome.out.split())
    assert "18 answers that are only context, 9 trained on; 3 held out." in text.replace("9 examples, ", "")
    assert text.count("⟦") == 3 + 3


def test_a_run_of_an_earlier_version_is_not_resumed(run_sft: Callable[..., Outcome], chats: str) -> None:
    """It had one answer a row, so its steps were others."""
    flags = ("--dataset", chats, *ALL, "--max-steps", "2", "--save-steps", "1")
    outcome = run_sft(*flags, "--conversations", "split")
    record = outcome.record
    del record["config"]["conversations"], record["config"]["train_on"]
    (outcome.folder / "run.json").write_text(json.dumps(record))
    resumed = run_sft(*flags, "--resume-from-checkpoint", str(outcome.folder / "checkpoint-1"))
    assert resumed.status == 2
    assert "The sequences that --conversations makes of the training examples have changed" in resumed.err[-1]


def test_the_data_report(run_cli: Callable[..., Ended], chat_model: Path, chats: str, differs: str) -> None:
    words = ("data", chats, "--model", chat_model, "--json")
    whole, split, apart, last = (
        json.loads(run_cli(*words, *more).out)["data_sets"][chats]
        for more in (
            (), ("--conversations", "split"), ("--chat-template-path", differs), ("--train-on", "last"),
        )
    )  # fmt: skip
    assert (whole["train"], whole["tokenized"], whole["sequences"], whole["in_parts"]) == (27, 27, 9, 0)
    assert (split["train"], split["tokenized"], split["sequences"], split["in_parts"]) == (27, 27, 27, 0)
    assert (apart["sequences"], apart["in_parts"]) == (27, 9)
    assert (last["train"], last["sequences"], last["counts"]["untrained_turns"]) == (9, 9, 18)
    assert whole["answer_tokens"] == split["answer_tokens"]
    assert whole["tokens"]["longest"] == split["tokens"]["longest"]
    assert whole["tokens"]["median"] > split["tokens"]["median"]
    assert sum(span["is_trained"] for span in whole["shown"][0]) == 3
    shown = run_cli("data", chats, "--model", chat_model, "--max-length", "160").out
    assert "sequences, of one or more answers" in shown
    assert "tokens of a sequence" in shown
    assert (
        run_cli(
            "data", chats, "--model", chat_model, "--conversations", "whole", "--chat-template-path", differs
        ).status
        == 2
    )
