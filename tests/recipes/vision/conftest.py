"""What the vision tests share: a folder of pictures, its cache, a tiny untrained encoder, and made-up records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from monolora.recipes.vision.features import Encoder, EncoderConfig, encoder_folder, save_encoder
from monolora.recipes.vision.figure_data import FigureData
from monolora.recipes.vision.figures import FIGURES
from monolora.recipes.vision.images import ImageData, Images, load_images
from monolora.recipes.vision.paper_comparison import compare
from monolora.recipes.vision.results import read_records
from monolora.recipes.vision.settings import Common, Consistency, Data, Finetune, Pretrain, Probe, Sae, Settings
from monolora.reporting import plots
from tests.support.shapes import save_shapes
from tests.support.vision_records import make_records


@pytest.fixture(scope="session", autouse=True)
def _image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 16 training and 6 validation images each, 12 pixels a side."""
    return save_shapes(tmp_path_factory.mktemp("shapes") / "images")


@pytest.fixture
def settings(shapes: Path, tmp_path: Path) -> Settings:
    """A run of seconds on the pictures."""
    return Settings(
        common=Common(out=str(tmp_path / "out"), device="cpu", precision="float32"),
        data=Data(dataset=str(shapes), image_size=12),
        pretrain=Pretrain(epochs=2, batch_size=16, warmup_epochs=1, width=8, projector_hidden=32, projector_out=16),
        sae=Sae(k=4, epochs=3, batch_size=16),
        probe=Probe(epochs=4, batch_size=16, label_seeds=2, noise_rates=(0.0, 0.5, 0.9)),
        finetune=Finetune(epochs=2, batch_size=16, fractions=(0.5, 1.0), noise_rates=(0.4,)),
        consistency=Consistency(images=3, dimensions=2),
    )


@pytest.fixture
def data(settings: Settings) -> ImageData:
    """The pictures, decoded."""
    return load_images(settings.data, torch.device("cpu"))


@pytest.fixture
def make_encoder(settings: Settings, data: ImageData) -> Callable[..., Encoder]:
    """``make_encoder(method="simclr", seed=0)``: untrained weights, saved where the steps look for them."""

    def make(method: str = "simclr", seed: int = 0, **changed: Any) -> Encoder:
        config = EncoderConfig(
            # with 4 channels oneDNN's AVX2 kernels corrupt memory (a 1x1 convolution of stride 2, backward; torch 2.13)
            non_negative=method == "ncl", stem="cifar", width=8, projector_hidden=32, projector_out=16,
            image_size=12, mean=data.train.mean, std=data.train.std,
        )._replace(**changed)  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 10)
            encoder = Encoder(config).eval()
        folder = encoder_folder(settings.common.out, method, seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_encoder(encoder, folder)
        return encoder

    return make


@pytest.fixture
def changed() -> Callable[..., Settings]:
    """``changed(settings, "probe", epochs=3)``: the same settings but for some of a section."""
    return lambda settings, section, **values: replace(
        settings, **{section: replace(getattr(settings, section), **values)}
    )


@pytest.fixture
def style() -> Iterator[None]:
    """The figures' style, as the program sets it."""
    with matplotlib.rc_context(dict(plots.SETTINGS)):
        yield


@pytest.fixture
def write_records(settings: Settings, data: ImageData) -> Callable[..., Settings]:
    """``write_records(seeds=(0, 1))``: made-up records of the pictures; the settings of their figures."""

    def write(**options: Any) -> Settings:
        options = {"val_fingerprint": data.val.fingerprint, "data": {"dataset": "cifar100"}} | options
        make_records(Path(settings.common.out), **options)
        return settings

    return write


@pytest.fixture
def draw(style: None, settings: Settings, data: ImageData) -> Callable[..., Figure]:
    """``draw("fig2")``: the figure of the records that are written; ``images`` instead of the pictures."""

    def of_records(name: str, images: Images | None = None) -> Figure:
        records = read_records(settings.common.out)
        return FIGURES[name](FigureData(records, compare(records, settings.data), lambda _: images or data.val))

    return of_records


@pytest.fixture
def figure_of(draw: Callable[..., Figure], write_records: Callable[..., Settings]) -> Callable[..., Figure]:
    """``figure_of("fig2", seeds=(0, 1))``: the figure of made-up records."""

    def of_new_records(name: str, **options: Any) -> Figure:
        write_records(**options)
        return draw(name)

    return of_new_records


@pytest.fixture
def results(settings: Settings) -> Callable[[str], dict[str, Any]]:
    """The results of a record: ``results("probe/ncl-0")``."""
    return lambda path: json.loads((Path(settings.common.out) / f"{path}.json").read_text())["results"]
