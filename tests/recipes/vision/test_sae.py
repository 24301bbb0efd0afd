"""``monolora vision sae``: its record, what is done again, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import r2_score

from monolora.errors import InputError, RunError, exit_status
from monolora.recipes.vision import sae as program
from monolora.recipes.vision.autoencoder import load_sae
from monolora.recipes.vision.features import Encoder, features_of
from monolora.recipes.vision.images import ImageData
from monolora.recipes.vision.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def folder(settings: Settings) -> Path:
    """Of seed 0's autoencoder."""
    return Path(settings.common.out) / "sae-0"


def record_in(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "sae.json").read_text())
    return record


def test_the_record_is_of_the_saved_weights(
    settings: Settings,
    folder: Path,
    data: ImageData,
    make_encoder: Callable[..., Encoder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_encoder("simclr")
    program.run(settings)
    record, sae = record_in(folder), load_sae(folder, CPU)
    features = features_of(settings.common, "simclr", 0, data, CPU)
    results = record["results"]
    for split in ("train", "val"):
        x_ND = getattr(features, f"{split}_ND")
        back_ND = sae.decode(sae.encode(x_ND)) / sae.scale
        expected = r2_score(x_ND, back_ND, multioutput="variance_weighted")
        assert results["explained_variance"][split] == pytest.approx(expected, abs=1e-4)
    assert results["dead"] == pytest.approx(float((sae.encode(features.train_ND) == 0).all(0).float().mean()))
    assert results["zeros"] == pytest.approx(float((sae.encode(features.val_ND) == 0).float().mean()))
    assert len(results["loss"]) == settings.sae.epochs
    assert record["inputs"] == {"features": features.fingerprint}
    assert record["settings"]["k"] == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"sae-0: {results['explained_variance']['train']:.1%} of the variance")


def test_what_is_done_is_not_done_again(
    settings: Settings, folder: Path, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")
    program.run(settings)
    first = record_in(folder)
    capsys.readouterr()
    program.run(settings)
    assert capsys.readouterr().out == "sae-0: done before\n"
    assert record_in(folder) == first


@pytest.mark.parametrize("what", ["settings", "encoder", "weights"])
def test_it_is_done_again_after_a_change_of(
    what: str,
    settings: Settings,
    folder: Path,
    make_encoder: Callable[..., Encoder],
    changed: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_encoder("simclr")
    program.run(settings)
    first = (folder / "sae.safetensors").read_bytes()
    if what == "settings":
        settings = changed(settings, "sae", unit_norm=True)
    elif what == "encoder":
        make_encoder("simclr", projector_hidden=24)
    else:
        (folder / "sae.safetensors").unlink()
    capsys.readouterr()
    program.run(settings)
    assert "of the variance" in capsys.readouterr().out
    assert ((folder / "sae.safetensors").read_bytes() == first) == (what == "weights")


def test_each_seed_has_its_own(
    settings: Settings, make_encoder: Callable[..., Encoder], changed: Callable[..., Settings]
) -> None:
    make_encoder("simclr", 0)
    make_encoder("simclr", 3)
    program.run(changed(settings, "common", seeds=(0, 3)))
    out = Path(settings.common.out)
    first, other = (load_sae(out / f"sae-{seed}", CPU) for seed in (0, 3))
    assert not torch.equal(first.decoder.weight, other.decoder.weight)


def test_k_larger_than_the_features_of_the_encoder_is_one_line_that_says_so(
    settings: Settings, shapes: Path, make_encoder: Callable[..., Encoder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_encoder("simclr")  # of 16 dimensions; the settings' default is 2048
    words = [
        "--out", settings.common.out, "--dataset", str(shapes), "--image-size", "12", "--device", "cpu", "--k", "20",
    ]  # fmt: skip
    assert exit_status(lambda: program.main(words)) == 2
    assert capsys.readouterr().err == (
        "error: --k 20 is more than the autoencoder's 16 latents. Lower --k, or raise --latents.\n"
    )


def test_a_loss_that_is_not_finite_leaves_the_last_good_one(
    settings: Settings, folder: Path, make_encoder: Callable[..., Encoder], changed: Callable[..., Settings]
) -> None:
    make_encoder("simclr")
    program.run(settings)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(RunError, match="not finite at step 2"):
        program.run(changed(settings, "sae", learning_rate=1e30))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_without_an_encoder_it_says_what_to_run_first(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"simclr-0 has no encoder\. Pretrain first"):
        program.run(settings)
