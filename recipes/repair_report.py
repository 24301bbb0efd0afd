"""What ``monolora repair`` reports: a sentence, a table, a figure, and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from monolora.files import write_json, write_text
from monolora.recipes import prune
from monolora.recipes.settings import Repair as Settings
from monolora.repair import FoundUnits, Outcome, Point
from monolora.reporting.palette import LIGHT
from monolora.reporting.plots import PALE, SETTINGS, save_figure, titled
from monolora.reporting.tables import piped
from monolora.stats import Estimate, Floats, bootstrap, estimate
from monolora.units import UnitName

NAME = "repair"  # of the files


class Measure(NamedTuple):
    """What is restored, in words, and its unit."""

    name: str
    unit: str

    @property
    def title(self) -> str:
        """Of a column or an axis."""
        return f"{self.name}, {self.unit}"


MEASURES = {
    "kl": Measure("KL to the base", "nats per token"),
    "refusals": Measure("shortfall of the refusal margin", "nats"),
}
_CONTROLS = {"random": "random", "scaled": "the whole adapter scaled down", "entries": "single entries of B zeroed"}


class Checked(NamedTuple):
    """A way of weakening an adapter, on the half that it was not chosen on.

    Attributes:
        strength: that was chosen; None where the adapter is as it was.
        points: that were measured on the other half to choose it.
        outcome: the losses.
        still_refused: of the prompts that the base refuses, by phrases, how many are refused.
    """

    strength: float | None
    points: list[Point]
    outcome: Outcome
    still_refused: int


@dataclass(frozen=True, kw_only=True)
class Repair:
    """A repair and its controls.

    Attributes:
        restore: a key of :data:`MEASURES`.
        limit: of the rise of the task's loss, nats per token.
        is_linear: whether the units are LoRA's ranks.
        names: of all units.
        weights_N: what the task's rows count.
        refusals: prompts that the base refuses, of the half that was checked on.
        before: of the adapter as it was, on the half that was chosen on.
        found: the units.
        whole: the adapter as it was.
        units: without the units that were found.
        controls: by a key of ``_CONTROLS``, one for each draw.
        lora: a repair of a LoRA adapter of the same task.
    """

    restore: str
    limit: float
    is_linear: bool
    names: Sequence[UnitName]
    weights_N: Floats
    refusals: int
    before: Point
    found: FoundUnits
    whole: Checked
    units: Checked
    controls: Mapping[str, list[Checked]] = field(default_factory=dict)
    lora: Repair | None = None

    def kept(self, checked: Checked) -> Estimate:
        """How far kept prompts are from the base."""
        return _mean(checked.outcome.kept_P)

    def restored(self, checked: Checked, than: Checked | None = None) -> Estimate:
        """How much farther they are than by the adapter as it was, or another way; negative for a repair."""
        return _mean(checked.outcome.kept_P - (than or self.whole).outcome.kept_P)

    def cost(self, checked: Checked) -> Estimate:
        """How far the task's loss rises."""
        return _mean(checked.outcome.task_N - self.whole.outcome.task_N, self.weights_N)

    @cached_property
    def rolled_back(self) -> str:
        """Why nothing is taken out; empty if something is."""
        what = MEASURES[self.restore].name
        if self.units.strength is None:
            return f"on the half that chooses, no units lower the {what} within the limit"
        if self.restored(self.units).mean >= 0:
            return (
                f"on the half that checks, the {what} does not fall without the {self.units.strength:g} {self.noun} "
                f"that were chosen ({self.kept(self.whole).mean:.3g} with them, {self.kept(self.units).mean:.3g} "
                "without)"
            )
        cost = self.cost(self.units)
        if (cost.mean if cost.low is None else cost.low) > self.limit:
            return (
                f"on the half that checks, the {self.units.strength:g} {self.noun} that were chosen cost the task "
                f"{_shown(cost)} nats per token, more than {self.limit:g}"
            )
        return ""

    @property
    def taken_out(self) -> list[UnitName]:
        """The units that are taken out in the end."""
        return [] if self.rolled_back else self.found.units

    @property
    def noun(self) -> str:
        """What units are called."""
        return "ranks" if self.is_linear else "units"


def _mean(values: Floats, weights: Floats | None = None) -> Estimate:
    result = bootstrap(values[None], np.ones(len(values)) if weights is None else weights)[0]
    assert result is not None
    return result


def sentence(repair: Repair) -> str:
    """The result. Where scaling the adapter down does as well, that comes first."""
    what, scaled = MEASURES[repair.restore], repair.controls.get("scaled", [None])[0]
    change = f"{repair.kept(repair.whole).mean:.3g} to {repair.kept(repair.units).mean:.3g}"
    if repair.rolled_back:
        result = f"Nothing was taken out: {repair.rolled_back}."
    else:
        cost = repair.cost(repair.units)
        beyond = f", which may be more than {repair.limit:g}" if cost.mean > repair.limit else ""
        result = (
            f"Without {len(repair.taken_out)} of {len(repair.names)} {repair.noun} the {what.name} falls from {change} "
            f"{what.unit} on held-out prompts, while the task's loss changes by {_shown(cost)} nats per token{beyond}."
        )
    if scaled is None or scaled.strength is None:
        return result
    difference = repair.restored(repair.whole if repair.rolled_back else repair.units, scaled)
    by, reached = f"Scaling the whole adapter by {1 - scaled.strength:g}", f"{repair.kept(scaled).mean:.3g}"
    if (difference.mean if difference.high is None else difference.high) < 0:
        return f"{result} {by} reaches {reached}; the difference is {_shown(difference)}."
    better = "better" if (difference.mean if difference.low is None else difference.low) > 0 else "as well"
    return f"{by} does {better}: it reaches {reached}, at {_shown(repair.cost(scaled))} nats per token. {result}"


class _Row(NamedTuple):
    name: str
    strength: str
    cost: Estimate | None
    kept: Estimate
    restored: Estimate | None
    still_refused: str


def _rows(repair: Repair, whose: str = "") -> Iterator[_Row]:
    def row(name: str, strength: str, checked: Sequence[Checked]) -> _Row:
        return _Row(
            whose + name,
            strength,
            _over_draws([repair.cost(each) for each in checked]),
            _over_draws([repair.kept(each) for each in checked]),
            _over_draws([repair.restored(each) for each in checked]),
            f"{np.mean([each.still_refused for each in checked]):g} of {repair.refusals}",
        )

    yield row("the adapter as trained", "–", [repair.whole])._replace(cost=None, restored=None)
    yield row(f"{repair.noun} taken out", _count(repair, [repair.units]), [repair.units])
    for key, name in _CONTROLS.items():
        if not (checked := repair.controls.get(key, [])):
            continue
        if key == "random":
            label = f"random {repair.noun}, {len(checked)} draws"
            yield row(label, _count(repair, checked), checked)
        elif checked[0].strength is None:
            yield row(name, "none", checked)
        else:
            share = f"× {1 - checked[0].strength:g}" if key == "scaled" else f"{checked[0].strength:.1%}"
            yield row(name, share, checked)
    if repair.lora is not None:
        yield from _rows(repair.lora, "LoRA: ")


def _count(repair: Repair, checked: Sequence[Checked]) -> str:
    return f"{np.mean([each.strength or 0 for each in checked]):.4g} of {len(repair.names)}"


def _over_draws(estimates: Sequence[Estimate]) -> Estimate:
    """One draw's own estimate, over prompts; of several the mean with Student's interval over draws."""
    if len(estimates) == 1:
        return estimates[0]
    over = estimate({draw: [each.mean] for draw, each in enumerate(estimates)})
    assert over is not None
    return over


def _shown(value: Estimate | None) -> str:
    if value is None:
        return "–"
    ends = "" if value.interval is None else f" [{value.interval.low:+.2g}, {value.interval.high:+.2g}]"
    return f"{value.mean:+.2g}{ends}"


def _level(value: Estimate) -> str:
    return f"{value.mean:.3g}" + ("" if value.interval is None else f" [{value.low:.2g}, {value.high:.2g}]")


def _head(repair: Repair) -> list[str]:
    return [
        "",
        "strength",
        "task loss, rise, nats per token",
        MEASURES[repair.restore].title,
        "change",
        "refused still",
    ]


def _cells(row: _Row) -> list[str]:
    return [row.name, row.strength, _shown(row.cost), _level(row.kept), _shown(row.restored), row.still_refused]


def table(repair: Repair) -> Table:
    """For the terminal."""
    result = Table(title=f"On held-out prompts and rows; limit {repair.limit:g} nats per token")
    for index, title in enumerate(_head(repair)):
        result.add_column(title, justify="right" if index else "left")
    for row in _rows(repair):
        result.add_row(*_cells(row))
    return result


def markdown(repair: Repair, settings: Settings) -> str:
    """The report."""
    prompts, rows = len(repair.whole.outcome.kept_P), len(repair.whole.outcome.task_N)
    return "\n\n".join(
        [
            f"# Repair of {settings.adapter}",
            sentence(repair),
            piped(_head(repair), map(_cells, _rows(repair))),
            f"![what each way reaches at which cost]({NAME}.png)",
            f"Measured on {prompts} prompts of {', '.join(settings.keep_prompts)} and {rows} training rows of "
            f"{settings.task} that nothing was chosen on; as many others chose. Every way is as strong as the task's "
            f"loss allows on those: it may rise by {repair.limit:g} nats per token. Intervals are of the bootstrap "
            "over prompts or rows; of random draws, Student's over draws. Refusals are found by phrases.",
            f"`{prune.JSON}` names what was taken out, `{NAME}.json` has every unit's attribution.",
        ]
    )


def summary(repair: Repair) -> dict[str, Any]:
    """The result as JSON values."""
    rows = [
        row._asdict() | {key: each and each._asdict() for key, each in _estimates(row).items()} for row in _rows(repair)
    ]
    return {
        "sentence": sentence(repair),
        "rolled_back": repair.rolled_back or None,
        "taken_out": [str(unit) for unit in sorted(repair.taken_out)],
        "units": len(repair.names),
        "limit": repair.limit,
        "restore": repair.restore,
        "rows": rows,
    }


def _estimates(row: _Row) -> dict[str, Estimate | None]:
    return {"cost": row.cost, "kept": row.kept, "restored": row.restored}


def write(folder: Path, repair: Repair, settings: Settings) -> None:
    """Write repair.json, repair.md and the figure.

    Raises:
        SaveError: if the disk does not take them.
    """
    points = {name: [list(map(_as_list, each.points)) for each in checked] for name, checked in _curves(repair).items()}
    columns = zip(repair.names, repair.found.kept_U, repair.found.task_U, strict=True)
    record = summary(repair) | {
        "settings": asdict(settings),
        "before": repair.before._asdict(),
        "points": points,
        "attribution": [{"unit": str(unit), "kept": float(k), "task": float(t)} for unit, k, t in columns],
    }
    write_json(folder / f"{NAME}.json", record)
    write_text(folder / f"{NAME}.md", markdown(repair, settings) + "\n")
    with mpl.rc_context(SETTINGS):
        save_figure(_figure(repair), folder, NAME)


def _as_list(point: Point) -> list[float]:
    return [point.strength, point.kept, point.task]


def _curves(repair: Repair) -> dict[str, list[Checked]]:
    own = {f"{repair.noun} taken out": [repair.units]}
    names = _CONTROLS | {"random": f"random {repair.noun}"}
    return own | {names[key]: checked for key, checked in repair.controls.items()}


def _figure(repair: Repair) -> Figure:
    """The kept prompts' loss against the task's, on the half that chooses: a line a way, a point a strength."""
    figure = titled(
        "What each way reaches at which cost to the task",
        "On the half that chooses. The dotted line is the limit; the cross is the adapter as trained.",
        6.4,
        4.0,
    )
    axes, before = figure.subplots(), repair.before
    for colour, (name, checked) in zip(LIGHT[1:], _curves(repair).items(), strict=False):
        for number, each in enumerate(checked):
            points = sorted([before, *each.points], key=lambda point: point.strength)
            axes.plot(
                [point.task - before.task for point in points], [point.kept for point in points], "o-",
                color=colour, markersize=3.5, linewidth=1.2, label=None if number else name,
            )  # fmt: skip
    axes.plot(0, before.kept, "x", color=PALE)
    axes.axvline(repair.limit, color=PALE, linewidth=0.8, linestyle=":")
    axes.set_xlim(right=max(6 * repair.limit, 1e-3))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="rise of the task's loss, nats per token", ylabel=MEASURES[repair.restore].title)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure
