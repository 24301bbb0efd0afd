"""What a comparison says of itself: differences by their tests, and nothing where none is clear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from monolora.eval.explain.compare_findings import finding, message
from monolora.eval.explain.compare_records import Adapter, Comparison, DatasetRows, Difference, Mean, Row

UNITS = {"sparsity": "%", "information": "bits"}


def _row(name: str, means: Mapping[str, float], p_holm: float) -> Row:
    names = list(means)
    return Row(
        id=name,
        title=name,
        unit=UNITS[name],
        chance=None,
        means={adapter: Mean(value, None, None, 9, 3, 9) for adapter, value in means.items()},
        differences=[
            Difference(later, earlier, means[later] - means[earlier], None, None, p_holm, p_holm, 3)
            for place, later in enumerate(names)
            for earlier in names[:place]
        ],
        values={adapter: np.array([value - 1, value, np.nan, value + 1]) for adapter, value in means.items()},
    )


def _comparison(*rows: Row) -> Comparison:
    adapters = [Adapter(name, f"out/{name}", f"runs/{name}", "MonoLoRA", "tiny", 9, 3) for name in rows[0].means]
    dataset = DatasetRows(
        name="sst2", fingerprint="f", texts=9, tokens=dict.fromkeys(rows[0].means, 90), strongest=5, rows=list(rows)
    )
    return Comparison(adapters=adapters, datasets=[dataset], left_out=[], tests=2, resamples=10, seed=0)


SPARSER = {"lora": 0.0, "mono": 83.1}
INFORMED = {"lora": 0.12, "mono": 0.08}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [_row("sparsity", SPARSER, 0.01), _row("information", INFORMED, 0.01)],
            "On sst2, mono’s units are sparser than lora’s (83.1 % against 0 %), and carry less information on the "
            "label (0.08 bits against 0.12 bits).",
        ),
        (
            [_row("sparsity", SPARSER, 0.2), _row("information", INFORMED, 0.01)],
            "On sst2, mono’s units carry less information on the label than lora’s (0.08 bits against 0.12 bits).",
        ),
        ([_row("sparsity", SPARSER, 0.05)], "No difference between the units of lora and mono was found."),
        (
            [_row("sparsity", SPARSER | {"third": 40.0}, 0.01)],
            "On sst2, sparsity goes from 0 % (lora) to 83.1 % (mono).",
        ),
        (
            [_row("sparsity", SPARSER | {"third": 40.0}, 0.5)],
            "No difference between the units of the 3 adapters was found.",
        ),
    ],
)
def test_the_message_has_what_is_clear(rows: list[Row], said: str) -> None:
    assert message(_comparison(*rows)) == said


@pytest.mark.parametrize(
    ("means", "p_holm", "said"),
    [
        (SPARSER, 0.01, "mono’s units are sparser than lora’s: median 83.1 %, against 0 %."),
        (SPARSER, 0.05, "No difference in the means was found."),
        (SPARSER | {"third": 40.0}, 0.01, "3 of 3 pairs of adapters differ in their means."),
    ],
)
def test_a_charts_finding(means: dict[str, float], p_holm: float, said: str) -> None:
    assert finding(_row("sparsity", means, p_holm)) == said
