"""Settings and command lines of the vision programs: what goes before what, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from monolora.errors import InputError, exit_status
from monolora.recipes.vision.settings import (
    SECTIONS,
    Common,
    Consistency,
    Data,
    Finetune,
    Pretrain,
    Probe,
    Sae,
    Settings,
    parse,
)

CONFIGS = Path(__file__).parents[3] / "recipes" / "vision" / "configs"


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """``config(text)``: a file with this text."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_the_papers() -> None:
    found = parse(["--out", "x"], "pretrain")
    assert found == Settings(common=Common(out="x"))
    assert (found.pretrain.epochs, found.pretrain.batch_size, found.pretrain.temperature) == (200, 256, 0.2)
    assert (found.pretrain.projector_hidden, found.pretrain.projector_out) == (16384, 2048)
    assert (found.sae.k, found.probe.epochs, found.finetune.epochs) == (256, 50, 100)
    assert found.finetune.fractions == (0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "probability"), [("cifar100-paper", 0.5), ("imagenet100-paper", 0.5), ("cifar100-small", 0)]
)
def test_configs_blur_as_the_authors_do(name: str, probability: float) -> None:
    """Their code blurs half of the views on CIFAR too; the small run whose numbers are in the docs had none."""
    assert parse(["--config", str(CONFIGS / f"{name}.yaml")], "pretrain").pretrain.blur_probability == probability


def test_config_and_flags_of_a_step(config: Callable[[str], Path]) -> None:
    path = config("""
out: from-config
seeds: [1, 2]
compile: true
data: {dataset: some/images, classes: 10}
finetune: {epochs: 7, noise-rates: [0.5], objectives: nce}
probe: {epochs: 9, augment: true}
sae:
""")
    found = parse(["--config", str(path), "--epochs", "3", "--classes=5", "--fractions", "0.2, 1"], "finetune")
    assert found == Settings(
        common=Common(out="from-config", seeds=(1, 2), compile=True),
        data=Data(dataset="some/images", classes=5),
        finetune=Finetune(epochs=3, noise_rates=(0.5,), objectives=("nce",), fractions=(0.2, 1.0)),
        probe=Probe(epochs=9, augment=True),  # --epochs is of the step alone
    )
    assert parse(["--config", str(path), "--out", "typed", "--seeds", "4"], "table1").common == Common(
        out="typed", seeds=(4,), compile=True
    )


def test_a_flag_with_the_default_goes_before_the_config(config: Callable[[str], Path]) -> None:
    path = config("{out: x, finetune: {epochs: 7}}")
    assert parse(["--config", str(path), "--epochs", "100"], "finetune").finetune.epochs == 100


def test_folders_of_other_images_are_added_up(config: Callable[[str], Path]) -> None:
    path = config("{out: x, probe: {ood: ['a=one, two']}}")
    assert parse(["--config", str(path)], "probe").probe.ood == ("a=one, two",)
    assert parse(["--config", str(path), "--ood", "b=3", "--ood", "c=4"], "probe").probe.ood == (
        "a=one, two", "b=3", "c=4",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "words", "message"),
    [
        ("finetune", ["--epoch", "3"], r"Unknown flag --epoch\. Did you mean --epochs"),
        ("finetune", ["--temperature", "1"], "Unknown flag --temperature"),  # it is pretraining's
        ("finetune", ["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        ("probe", ["--noise-rates", "0.1,x"], "--noise-rates: invalid list of float value"),
        ("pretrain", ["--stem", "cifer"], "--stem: invalid choice: 'cifer'"),
        ("probe", ["three"], "Unexpected argument 'three'"),
    ],
)
def test_flags_that_are_refused(step: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(["--out", "x", *words], step)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{out: x, finetun: {epochs: 3}}", "Unknown section 'finetun'; choose one of .* Did you mean finetune"),
        ("{out: x, finetune: {epoch: 3}}", r"config.yaml, finetune: Unknown flag --epoch\. Did you mean --epochs"),
        ("{out: x, seed: 3}", r"Unknown flag --seed\. Did you mean --seeds"),
        ("{out: x, epochs: 3}", "Unknown flag --epochs"),
        ("{out: x, finetune: 3}", "finetune is a section and needs settings below it, got 3"),
        ("{out: x, finetune: {epochs: many}}", "finetune: epochs must be a whole number, got 'many'"),
        ("{out: x, finetune: {fractions: [a]}}", "fractions must be a list of float"),
        ("{out: x, probe: {augment: maybe}}", "augment"),
        ("[out]", "must be a mapping"),
    ],
)
def test_configs_that_are_refused(config: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(["--config", str(config(text))], "finetune")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("step", "words", "message"),
    [
        ("finetune", ["--noise-rates", "0.1,1.2"], "--noise-rates must be at least 0 and at most 1, got 1.2"),
        ("probe", ["--noise-rates=-0.1"], "--noise-rates must be at least 0 and at most 1, got -0.1"),
        ("probe", ["--noise-rates", "nan"], "--noise-rates must be at least 0 and at most 1, got nan"),
        ("consistency", ["--noise-rate", "2"], "--noise-rate must be at least 0 and at most 1, got 2.0"),
        ("finetune", ["--fractions", "0"], r"--fractions must be above 0 and at most 1, got 0\.0"),
        ("finetune", ["--fractions", "1.5"], "--fractions must be above 0 and at most 1, got 1.5"),
        ("finetune", ["--epochs", "0"], "--epochs must be at least 1, got 0"),
        ("finetune", ["--draws", "0"], "--draws must be at least 1, got 0"),
        ("finetune", ["--batch-size", "-4"], "--batch-size must be at least 1, got -4"),
        ("finetune", ["--learning-rate", "-1"], "--learning-rate must be at least 0"),
        ("finetune", ["--learning-rate", "inf"], "--learning-rate must be at least 0"),
        ("finetune", ["--objectives", "ce,nse"], "--objectives takes ce, nce, each once; got ce, nse"),
        ("finetune", ["--objectives", "ce,ce"], "--objectives takes ce, nce, each once; got ce, ce"),
        ("finetune", ["--objectives", ""], "--objectives takes ce, nce, each once; got nothing"),
        ("pretrain", ["--methods", "mocha"], "--methods takes simclr, ncl, each once; got mocha"),
        ("pretrain", ["--temperature", "0"], "--temperature must be above 0"),
        ("pretrain", ["--crop-min", "0"], "--crop-min must be above 0 and at most 1"),
        ("pretrain", ["--batch-size", "6", "--accumulation", "4"], "leaves less than 2 images a part"),
        ("probe", ["--losses", "mse"], "--losses takes ce, sce, each once; got mse"),
        ("sae", ["--k", "300", "--latents", "200"], "--k 300 is more than the autoencoder's 200 latents. Lower --k"),
        ("sae", ["--seeds", ""], "--seeds needs at least one number"),
        ("sae", ["--seeds=-1"], "--seeds must be at least 0, got -1"),
        ("sae", ["--cache-size", "16"], "--cache-size 16 is smaller than --image-size 32"),
        ("sae", ["--out", ""], "Give the folder of the runs with --out"),
    ],
)
def test_values_that_are_refused(step: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse(["--out", "x", *words], step)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("finetune", ["--noise-rates", "0,1", "--fractions", "1,0.001"]),
        ("pretrain", ["--warmup-epochs", "0", "--seeds", "0,7"]),
        ("sae", ["--k", "64", "--latents", "64"]),
        ("data", ["--cache-size", "32"]),
    ],
)
def test_values_at_the_edge_are_taken(step: str, words: list[str]) -> None:
    parse(["--out", "x", *words], step)


@pytest.mark.parametrize("step", [*SECTIONS, "table1", "all"])
def test_help_names_every_flag_of_a_step(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exit_status(lambda: parse(["--help"], step, "What it does.") and 0)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    own = [Common, Data, *([SECTIONS[step]] if step in SECTIONS else [])]
    for section in own:
        assert all(f"--{each.name.replace('_', '-')}" in shown for each in fields(section))
    assert "What it does." in shown


def test_sections_are_all_in_the_settings() -> None:
    names = {each.name for each in fields(Settings)}
    assert names == {"common", *SECTIONS}
    assert set(SECTIONS.values()) == {Data, Pretrain, Sae, Probe, Finetune, Consistency}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_that_come_along_are_good(path: Path) -> None:
    assert parse(["--config", str(path)], "all").common.out


@pytest.mark.parametrize(("step", "refused"), [("all", True), ("pretrain", False), ("sae", False)])
def test_latents_kept_are_held_against_the_projector_where_both_are_run(
    tmp_path: Path, step: str, refused: bool
) -> None:
    """A step alone may work on an encoder of another size, or need no autoencoder."""
    path = tmp_path / "config.yaml"
    path.write_text("out: x\npretrain: {projector_out: 64}\nsae: {k: 65}\n")
    if refused:
        with pytest.raises(InputError, match="--k 65 is more than the autoencoder's 64 latents"):
            parse(["--config", str(path)], step)
    else:
        assert parse(["--config", str(path)], step).sae.k == 65
