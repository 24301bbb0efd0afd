"""The program: its files, what it does again and what not, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from monolora import files
from monolora.errors import InputError, SaveError, exit_status
from monolora.recipes.superposition import run as program
from monolora.recipes.superposition.toy_model import dimensionality, in_antipodal_pair

FLAGS = {
    "features": "6", "dimensions": "3", "sparsities": "0.9,0,0.5", "seeds": "3", "encoder-steps": "20",
    "encoder-batch": "16", "train-samples": "30,60", "test-samples": "50", "noise-rates": "0,0.9",
    "noise-scales": "0,0.4,2", "epochs": "2", "batch-size": "20", "learning-rate": "1", "device": "cpu",
}  # fmt: skip
FILES = {"encoders.json", "encoders.safetensors", "noise-30.json", "noise-60.json", "results.md"}


def words(out: Path, **changed: str) -> list[str]:
    flags = FLAGS | {"out": str(out)} | {name.replace("_", "-"): value for name, value in changed.items()}
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["results"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny run. Copy it to change it."""
    out = tmp_path_factory.mktemp("superposition") / "deep" / "run"
    assert program.main(words(out)) == 0
    return out


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained: ``encoders``, and numbers of training samples."""
    trained: list[str] = []

    def noted(name: str, say: Callable[..., str]) -> None:
        real = getattr(program, name)

        def call(*arguments: Any) -> Any:
            trained.append(say(*arguments))
            return real(*arguments)

        monkeypatch.setattr(program, name, call)

    noted("train_encoders", lambda *_: "encoders")
    noted("noise_results", lambda W, settings, count, device: str(count))
    return trained


def test_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    tensors = load_file(finished / "encoders.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        "W": ((3, 3, 3, 6), torch.float32),
        "b": ((3, 3, 6), torch.float32),
    }
    geometry = results(finished / "encoders.json")
    assert set(geometry) == {"loss", "norms", "dimensionality", "paired", "weights", "seconds"}
    for index, key in enumerate(("0.9", "0.0", "0.5")):  # in the order of --sparsities
        W_smn = tensors["W"][index]
        torch.testing.assert_close(torch.tensor(geometry["norms"][key]), W_smn.square().sum(1).sqrt())
        torch.testing.assert_close(torch.tensor(geometry["dimensionality"][key]), dimensionality(W_smn))
        assert geometry["paired"][key] == in_antipodal_pair(W_smn).tolist()
        assert len(geometry["loss"][key]) == 3
    assert list(geometry["loss"]) == ["0.9", "0.0", "0.5"]
    for name in ("noise-30.json", "noise-60.json"):
        record = json.loads((finished / name).read_text())
        assert set(record["results"]) == {"accuracy", "fitted", "seconds"}
        assert set(record["settings"]) == {
            "sparsities", "seeds", "test_samples", "noise_rates", "noise_scales", "epochs", "batch_size",
            "learning_rate", "weight_decay", "train_samples",
        }  # fmt: skip


def test_it_says_what_it_does_and_shows_the_tables(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(words(tmp_path / "again"))
    printed = capsys.readouterr().out
    assert "encoders: 9, 3 sparsities x 3 seeds, 6 features in 3 dimensions: training, 20 steps" in printed
    assert "noise: 30 classifiers, 60 training samples each: training, 2 epochs" in printed
    tables = (tmp_path / "again" / "results.md").read_text()
    assert tables in printed
    assert tables == (finished / "results.md").read_text()  # the same numbers in every run


def test_what_is_done_is_not_done_again(done: Path, trainings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    program.main(words(done))
    assert trainings == []
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before
    assert capsys.readouterr().out.count("done before") == 3


@pytest.mark.parametrize(
    ("missing", "again"),
    [
        ("results.md", []),
        ("noise-60.json", ["60"]),
        ("encoders.json", ["encoders", "30", "60"]),
        ("encoders.safetensors", ["encoders", "30", "60"]),
    ],
)
def test_a_killed_run_resumes_at_the_next_file(
    finished: Path, done: Path, trainings: list[str], missing: str, again: list[str]
) -> None:
    (done / missing).unlink()
    program.main(words(done))
    assert trainings == again
    assert {path.name for path in done.iterdir()} == FILES
    assert (done / "results.md").read_text() == (finished / "results.md").read_text()


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"epochs": "3"}, ["30", "60"]),
        ({"train_samples": "60,90"}, ["90"]),
        ({"noise_rates": "0,0.5"}, ["30", "60"]),
        ({"encoder_steps": "21"}, ["encoders", "30", "60"]),
        ({"seeds": "2"}, ["encoders", "30", "60"]),
        ({"device": "auto"}, []),
    ],
)
def test_other_settings_are_done_anew(
    done: Path, trainings: list[str], changed: dict[str, str], again: list[str]
) -> None:
    program.main(words(done, **changed))
    assert trainings == again


def test_records_of_other_encoders_do_not_stay(done: Path) -> None:
    program.main(words(done, encoder_steps="21", train_samples="60"))
    assert {path.name for path in done.iterdir()} == FILES - {"noise-30.json"}
    assert "30 training samples" not in (done / "results.md").read_text()


def test_more_seeds_have_the_fewer_among_them(finished: Path, tmp_path: Path) -> None:
    program.main(words(tmp_path / "more", seeds="4", train_samples="60"))
    few, many = (results(out / "encoders.json") for out in (finished, tmp_path / "more"))
    for key, values in few["loss"].items():
        assert len(many["loss"][key]) == 4
        assert many["loss"][key][:3] == pytest.approx(values, rel=1e-4)
        assert many["loss"][key][3] != pytest.approx(values[0], rel=1e-3)
    few, many = (results(out / "noise-60.json")["accuracy"] for out in (finished, tmp_path / "more"))
    for key, of_sparsity in few.items():
        for encoder, of_encoder in of_sparsity.items():
            for kind, of_kind in of_encoder.items():
                for level, values in of_kind.items():
                    accuracies = many[key][encoder][kind][level]
                    assert len(accuracies) == 4
                    assert accuracies[:3] == pytest.approx(values, abs=0.021)  # a sample of 50 may turn


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sparsities": "0.5"}, "--sparsities must have 0"),
        ({"sparsities": "0"}, "--sparsities has only 0"),
        ({"encoder_learning_rate": "1e38"}, "--encoder-learning-rate must be above 0 and below 1e+06"),
        ({"sparsities": "0,1"}, "--sparsities must be at least 0 and below 1, got 1.0."),
        ({"sparsities": "0,0"}, "--sparsities has a number twice"),
        ({"sparsities": "0,half"}, "--sparsities: invalid list of float value"),
        ({"noise_rates": "0.5"}, "--noise-rates must have 0"),
        ({"noise_rates": "0,1.5"}, "--noise-rates must be at least 0 and below 1, got 1.5."),
        ({"noise_scales": ""}, "--noise-scales is empty."),
        ({"noise_scales": "0,-1"}, "--noise-scales must be at least 0, got -1.0."),
        ({"dimensions": "6"}, "--dimensions 6 must be fewer than --features 6"),
        ({"seeds": "0"}, "--seeds must be at least 1, got 0."),
        ({"train_samples": "10,0"}, "--train-samples must be at least 1, got 0."),
        ({"epochs": "many"}, "--epochs: invalid int value: 'many'"),
        ({"learning_rate": "nan"}, "--learning-rate must be above 0 and below 1e+06, got nan."),
        ({"importance_decay": "1.1"}, "--importance-decay must be above 0 and at most 1"),
        ({"device": "abacus"}, "--device abacus cannot be used here."),
        ({"sparsity": "0"}, "Unknown flag --sparsity. Did you mean --sparsities"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], message: str
) -> None:
    assert exit_status(lambda: program.main(words(tmp_path / "out", **changed))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named(done: Path) -> None:
    record = done / "noise-60.json"
    record.write_text(record.read_text()[:100])
    with pytest.raises(InputError, match=r"noise-60\.json is damaged: .* Delete it"):
        program.main(words(done))


@pytest.mark.parametrize(
    "damage", [lambda path: path.read_bytes()[:100], lambda _: save({"W": torch.zeros(3, 3, 3, 6)})]
)
def test_weights_that_are_not_the_records_are_trained_again(
    finished: Path, done: Path, trainings: list[str], damage: Callable[[Path], bytes]
) -> None:
    weights = done / "encoders.safetensors"
    weights.write_bytes(damage(weights))
    program.main(words(done))
    assert trainings == ["encoders", "30", "60"]
    assert weights.read_bytes() == (finished / "encoders.safetensors").read_bytes()


def test_classifiers_of_other_settings_are_not_shown_together(done: Path, trainings: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"noise-30\.json is of other settings \(epochs, learning_rate\).*another --out"
    ):
        program.main(words(done, train_samples="60,90", epochs="3", learning_rate="2"))
    assert trainings == []
    program.main(words(done, train_samples="30,60", epochs="3", learning_rate="2"))
    assert trainings == ["30", "60"]


def test_a_folder_that_cannot_be(tmp_path: Path, trainings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file is a file\. Name a folder\."):
        program.main(words(tmp_path / "file"))
    with pytest.raises(SaveError, match=r"Cannot save into .*file/run: .* Name another folder with --out"):
        program.main(words(tmp_path / "file" / "run"))
    assert trainings == []


@pytest.mark.parametrize("name", ["encoders.safetensors", "results.md", "noise-30.json", "noise-mine.json"])
def test_files_of_others_are_not_written_over(tmp_path: Path, trainings: list[str], name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists and does not belong to a run|{name} is damaged"):
        program.main(words(tmp_path / "out"))
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: "mine"}
    assert trainings == []


@pytest.mark.parametrize("name", ["encoders.safetensors", "results.md"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = files._replace

    def full(path: Path, aside: Path, write_to: Callable[[Path], object]) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        real(path, aside, write_to)

    monkeypatch.setattr(files, "_replace", full)
    with pytest.raises(SaveError, match=r"No space left on device.* Free space, then give the same command again\."):
        program.main(words(tmp_path / "out"))
    assert not (tmp_path / "out" / name).exists()


def test_defaults_are_settings() -> None:
    """Flags that are not given are left to the settings."""
    with pytest.raises(InputError, match="must have 0"):
        program.main(["--sparsities", "0.5"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(finished: Path, tmp_path: Path) -> None:
    program.main(words(tmp_path / "gpu", device="cuda"))
    ours, theirs = (load_file(out / "encoders.safetensors")["W"] for out in (tmp_path / "gpu", finished))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
