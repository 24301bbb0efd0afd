"""The figures of the encoders show what the records say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from safetensors.numpy import load_file

from monolora.errors import InputError
from monolora.recipes.superposition import encoder_plots
from monolora.recipes.superposition.records import Records
from tests.support.toy_records import SPARSITIES


def test_dots_are_features_apart_by_whether_they_are_represented(
    write_records: Callable[..., Records], tmp_path: Path
) -> None:
    dots, shares = encoder_plots.geometry_figure(write_records(seeds=4)).axes
    assert [label.get_text() for label in dots.get_xticklabels()] == [f"{S:g}" for S in SPARSITIES]
    geometry = json.loads((tmp_path / "encoders.json").read_text())["results"]
    for index, S in enumerate(SPARSITIES):
        values, norms = (np.array(geometry[key][str(S)]) for key in ("dimensionality", "norms"))
        not_represented, represented = dots.collections[2 * index : 2 * index + 2]
        for drawn, mask in ((not_represented, norms <= 0.5), (represented, norms > 0.5)):
            xs, ys = np.asarray(drawn.get_offsets()).reshape(-1, 2).T
            assert sorted(ys) == pytest.approx(sorted(values[mask]))
            assert np.all(abs(xs - index) < 0.4)
    flags = {"represented": lambda S: np.array(geometry["norms"][S]) > 0.5, "in pairs": geometry["paired"].get}
    for label, flags_of in flags.items():
        (line,) = [line for line in shares.lines if line.get_label() == label]
        assert list(line.get_ydata()) == pytest.approx([100 * np.mean(flags_of(str(S))) for S in SPARSITIES])
    assert {text.get_text() for text in dots.texts} >= {"1: alone", "1/2: antipodal pair"}


def entries(axes: Axes) -> np.ndarray:
    """The matrix that an image shows, by the image's own pixels."""
    (image,) = axes.images
    pixels, (left, right, bottom, top) = np.asarray(image.get_array()), image.get_extent()
    n_rows, n_columns = round(bottom - top), round(right - left)
    blocks = pixels.reshape(n_rows, pixels.shape[0] // n_rows, n_columns, -1)
    assert np.all(blocks == blocks[:, :1, :, :1])
    return blocks[:, 0, :, 0]


@pytest.mark.parametrize(
    ("sparsities", "flag", "shown"),
    [(SPARSITIES, None, 0.9), (SPARSITIES, 0.5, 0.5), ((0.95, 0.0, 0.7, 0.2), None, 0.7), ((0.0, 0.97), None, 0.97)],
)
def test_figure_5a_shows_the_first_seeds_encoders(
    write_records: Callable[..., Records],
    tmp_path: Path,
    sparsities: tuple[float, ...],
    flag: float | None,
    shown: float,
) -> None:
    figure = encoder_plots.fig5a(write_records(seeds=2, sparsities=sparsities), flag)
    W_Ssmn = load_file(tmp_path / "encoders.safetensors")["W"]
    for (rotated, gram, learned), S in zip((figure.axes[:3], figure.axes[3:6]), (0.0, shown), strict=True):
        W_mn = W_Ssmn[sparsities.index(S), 0]
        assert np.array_equal(entries(learned), W_mn)
        assert entries(gram) == pytest.approx(W_mn.T @ W_mn, abs=1e-5)
        assert entries(rotated).T @ entries(rotated) == pytest.approx(W_mn.T @ W_mn, abs=1e-5)
        assert np.sum(entries(rotated) ** 4) > 1.2 * np.sum(W_mn.astype(float) ** 4)
        assert rotated.texts[0].get_text().splitlines()[0].endswith(f"superposition, S = {S:g}:")
    assert "6 of 12 features represented, 0 in antipodal pairs" in figure.axes[0].texts[0].get_text()
    assert ("0 in" in figure.axes[3].texts[0].get_text()) == (shown < 0.2)
    norms = {image.norm for axes in figure.axes for image in axes.images}
    (norm,) = norms
    assert norm(0.0) == pytest.approx(0.5)
    assert norm.vmax == pytest.approx(max(np.abs(entries(axes)).max() for axes in figure.axes[:6]))


def test_figure_5a_refuses_a_sparsity_without_encoder(write_records: Callable[..., Records]) -> None:
    with pytest.raises(InputError, match=r"no encoder with superposition of S = 0\.7\. There are 0\.5, 0\.8, 0\.9"):
        encoder_plots.fig5a(write_records(), 0.7)
