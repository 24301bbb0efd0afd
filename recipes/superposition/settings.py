"""The settings of ``monolora superposition``'s steps. Each field is a flag."""

from __future__ import annotations

from dataclasses import dataclass, fields

from monolora.cli.flags import Flags, flag_of, numbers, setting, spelled, whole_numbers
from monolora.errors import InputError

MONO, POLY = "mono", "poly"  # the encoder of dense data, and that of the data at hand


@dataclass(frozen=True, kw_only=True)
class Run(Flags):
    """The toy model and its classifiers (section 4.2). Where the paper is silent, the help says what we take."""

    out: str = setting("runs/superposition", "the folder of the results; what is done in it is not done again")
    features: int = setting(40, "n, also the number of classes: the label is the largest feature", type=int, at_least=1)
    dimensions: int = setting(20, "m, of the encoders' outputs", type=int, at_least=1)
    sparsities: tuple[float, ...] = setting(
        (0.0, 0.5, 0.8, 0.9, 0.95),
        "S, the probability that a feature is 0; with 0 among them",
        type=numbers,
        at_least=0,
        below=1,
    )
    seeds: int = setting(20, "runs at each sparsity: encoder, data and noise are new in each", type=int, at_least=1)
    importance_decay: float = setting(
        0.95, "I_i = decay^i weighs feature i in the reconstruction", type=float, above=0, at_most=1
    )
    encoder_steps: int = setting(3000, "of Adam", type=int, at_least=1)
    encoder_batch: int = setting(256, "new samples a step, for each encoder", type=int, at_least=1)
    encoder_learning_rate: float = setting(
        0.01, "of Adam, at its start; it falls as a cosine", type=float, above=0, below=1e6
    )
    train_samples: tuple[int, ...] = setting(
        (1000, 5000),
        "labelled samples that classifiers learn from; one experiment for each",
        type=whole_numbers,
        at_least=1,
    )
    test_samples: int = setting(10000, "without label noise, that they are measured on", type=int, at_least=1)
    noise_rates: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "shares of wrong training labels",
        type=numbers,
        at_least=0,
        below=1,
    )
    noise_scales: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        "standard deviations of Gaussian noise on test samples",
        type=numbers,
        at_least=0,
    )
    epochs: int = setting(100, "of a classifier, over its samples", type=int, at_least=1)
    batch_size: int = setting(250, "samples a step of a classifier", type=int, at_least=1)
    learning_rate: float = setting(
        20.0, "of its SGD with momentum 0.9, at its start; it falls as a cosine", type=float, above=0, below=1e6
    )
    weight_decay: float = setting(0.0, "of its weights", type=float, at_least=0)
    device: str = setting("auto", "cpu, cuda, cuda:1 …; auto is the GPU where there is one")

    def check(self) -> None:
        """As for all settings; and lists have each value once, and what they are compared with.

        Raises:
            InputError: naming the flag.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if value == () or value == "":
                raise InputError(f"{flag_of(each)} is empty.")
            if isinstance(value, tuple) and len(set(value)) < len(value):
                raise InputError(f"{flag_of(each)} has a number twice: {', '.join(map(str, value))}.")
        super().check()
        for name in ("sparsities", "noise_rates", "noise_scales"):
            if 0 not in getattr(self, name):
                raise InputError(f"{spelled(name)} must have 0, what all else is compared with. Add it.")
        if len(self.sparsities) < 2:
            raise InputError("--sparsities has only 0, where there is no superposition to compare with. Add one above.")
        if self.dimensions >= self.features:
            raise InputError(
                f"--dimensions {self.dimensions} must be fewer than --features {self.features}: there is no "
                "superposition otherwise."
            )


@dataclass(frozen=True, kw_only=True)
class Verify(Flags):
    """The Monte Carlo that the closed forms are checked with."""

    samples: int = setting(4_000_000, "of Monte Carlo, for each S", type=int)
    seed: int = setting(0, "of Monte Carlo", type=int, at_least=0)
    sparsities: tuple[float, ...] = setting((0.0, 0.25, 0.5, 0.75, 0.95), "S of Monte Carlo", type=numbers)
    label_noise: tuple[float, ...] = setting((0.1, 0.25, 0.4), "shares of wrong labels, of Monte Carlo", type=numbers)
    input_noise: tuple[float, ...] = setting((0.5, 1.0), "standard deviations, of Monte Carlo", type=numbers)


@dataclass(frozen=True, kw_only=True)
class Figures(Flags):
    """Settings of the figures."""

    out: str = setting(Run.out, "the folder of a run; the figures go into its figures/", metavar="FOLDER")
    sparsity: float | None = setting(None, "that fig5a shows (default: 0.9, or the nearest there is)", type=float)
