"""A token on the command line of ``monolora sft``, and in files: no byte that a run leaves holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monolora import cli
from monolora.recipes.training import publication
from monolora.recipes.training.arguments import parse
from tests.support.program_runs import Outcome

TOKEN = "hush_Zq81vXw2"
Run = Callable[..., Outcome]


def test_a_run_leaves_no_token(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    outcome = run_sft("--hub-token", TOKEN, "--skip-eval", "--save-steps", "1", "--max-steps", "1", "--report-to",
                      "tensorboard", "--run-name", "key 0123456789abcdef0123")  # fmt: skip
    assert outcome.status == 0
    files = [path for path in outcome.folder.rglob("*") if path.is_file()]
    assert {"training_args.bin", "run.json", "README.md", "trainer_state.json"} <= {path.name for path in files}
    assert any(path.name.startswith("events.out") for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in outcome.out + "".join(outcome.err)
    assert "0123456789abcdef0123" not in (outcome.folder / "run.json").read_text()


def test_the_token_is_kept_in_memory_only(tmp_path: Path) -> None:
    training = parse(["--hub-token", TOKEN, "--output-dir", str(tmp_path)]).training
    assert training.hub_token == TOKEN
    assert TOKEN not in repr(training) + str(training) + training.to_json_string()
    torch.save(training, tmp_path / "training_args.bin")
    assert TOKEN.encode() not in (tmp_path / "training_args.bin").read_bytes()
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert loaded.hub_token is None
    assert loaded.learning_rate == training.learning_rate


def test_a_hub_that_repeats_the_token(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def whoami(self) -> dict[str, str]:
            raise ConnectionError(f"401: the token {self.token} is none of ours")

    monkeypatch.setattr(publication, "HfApi", Hub)
    outcome = run_sft("--push-to-hub", "--hub-token", TOKEN)
    assert outcome.status == 2
    assert "the token *** is none of ours" in outcome.err[-1]


@pytest.mark.parametrize(
    ("program", "text", "name"),
    [
        ("sft", f"hub_token: {TOKEN}", "hub_token"),
        ("sft", f"env:\n  HF_TOKEN: {TOKEN}", "env.HF_TOKEN"),
        ("sft", f"model_init_kwargs: {{token: {TOKEN}}}", "model_init_kwargs.token"),
        ("study", f"presets:\n  a: {{}}\nsft:\n  hub_token: {TOKEN}", "sft.hub_token"),
        ("study", f"presets:\n  a:\n    eval:\n      endpoint: [http://me:{TOKEN}@host/v1]", "presets.a.eval.endpoint"),
    ],
)
def test_a_token_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, text: str, name: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert cli.main([program, "--config", str(config)]) == 2
    printed = capsys.readouterr()
    assert f"{name} holds a secret" in printed.err
    assert TOKEN not in printed.out + printed.err
