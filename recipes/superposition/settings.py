"""The settings of ``monolora superposition run``. Each field is a flag."""

from __future__ import annotations

from dataclasses import dataclass, fields

from monolora.errors import InputError
from monolora.flags import flag_of, numbers, setting, whole_numbers

MONO, POLY = "mono", "poly"  # the encoder of dense data, and that of the data at hand


@dataclass(frozen=True, kw_only=True)
class Run:
    """The toy model and its classifiers (section 4.2). Where the paper is silent, the help says what we take."""

    out: str = setting("runs/superposition", "the folder of the results; what is done in it is not done again")
    features: int = setting(40, "n, also the number of classes: the label is the largest feature", type=int)
    dimensions: int = setting(20, "m, of the encoders' outputs", type=int)
    sparsities: tuple[float, ...] = setting(
        (0.0, 0.5, 0.8, 0.9, 0.95), "S, the probability that a feature is 0; with 0 among them", type=numbers
    )
    seeds: int = setting(20, "runs at each sparsity: encoder, data and noise are new in each", type=int)
    importance_decay: float = setting(0.95, "I_i = decay^i weighs feature i in the reconstruction", type=float)
    encoder_steps: int = setting(3000, "of Adam", type=int)
    encoder_batch: int = setting(256, "new samples a step, for each encoder", type=int)
    encoder_learning_rate: float = setting(0.01, "of Adam, at its start; it falls as a cosine", type=float)
    train_samples: tuple[int, ...] = setting(
        (1000, 5000), "labelled samples that classifiers learn from; one experiment for each", type=whole_numbers
    )
    test_samples: int = setting(10000, "without label noise, that they are measured on", type=int)
    noise_rates: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "shares of wrong training labels", type=numbers
    )
    noise_scales: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), "standard deviations of Gaussian noise on test samples", type=numbers
    )
    epochs: int = setting(100, "of a classifier, over its samples", type=int)
    batch_size: int = setting(250, "samples a step of a classifier", type=int)
    learning_rate: float = setting(20.0, "of its SGD with momentum 0.9, at its start; it falls as a cosine", type=float)
    weight_decay: float = setting(0.0, "of its weights", type=float)
    device: str = setting("auto", "cpu, cuda, cuda:1 …; auto is the GPU where there is one")

    def check(self) -> None:
        """Refuse what no run can have.

        Raises:
            InputError: for a value out of range, naming its flag.
        """
        for each in fields(self):
            given = getattr(self, each.name)
            if given == () or given == "":
                raise InputError(f"{flag_of(each.name)} is empty.")
            values = given if isinstance(given, tuple) else (given,)
            if len(set(values)) < len(values):
                raise InputError(f"{flag_of(each.name)} has a number twice: {', '.join(map(str, values))}.")
            for value in values:
                _check_range(each.name, value)
        for name in ("sparsities", "noise_rates", "noise_scales"):
            if 0 not in getattr(self, name):
                raise InputError(f"{flag_of(name)} must have 0, what all else is compared with. Add it.")
        if len(self.sparsities) < 2:
            raise InputError("--sparsities has only 0, where there is no superposition to compare with. Add one above.")
        if self.dimensions >= self.features:
            raise InputError(
                f"--dimensions {self.dimensions} must be fewer than --features {self.features}: there is no "
                "superposition otherwise."
            )


def _check_range(name: str, value: float | str) -> None:
    flag = flag_of(name)
    if isinstance(value, str):
        return
    if not 0 <= value < float("inf"):
        raise InputError(f"{flag} must be 0 or more, got {value}.")
    if name in ("sparsities", "noise_rates") and value >= 1:
        raise InputError(f"{flag} must be below 1, got {value}.")
    if name == "importance_decay" and not 0 < value <= 1:
        raise InputError(f"{flag} must be above 0, and at most 1, got {value}.")
    if isinstance(value, int) and value < 1:
        raise InputError(f"{flag} must be at least 1, got {value}.")
    if name.endswith("learning_rate") and not 0 < value < 1e6:
        raise InputError(f"{flag} must be above 0, and below a million, got {value}.")
