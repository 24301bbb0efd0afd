"""The settings of the vision experiments. Each field is a flag of its step and a key of its section of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from monolora.cli.config_file import load_yaml, settings_in, split_config
from monolora.cli.flags import FlagParser, Flags, frozen, numbers, setting, whole_numbers, words
from monolora.errors import InputError, unknown

METHODS = ("simclr", "ncl")
REPRESENTATIONS = (*METHODS, "sae")
LOSSES = ("ce", "sce")
OBJECTIVES = ("ce", "nce")
NOISES = ("uniform", "gaussian")


@dataclass(frozen=True, kw_only=True)
class Common(Flags):
    """Of every step."""

    out: str = setting("", "the folder of all runs and results; what is done in it is not done again", metavar="FOLDER")
    seeds: tuple[int, ...] = setting((0,), "of pretraining; several with commas", type=whole_numbers, at_least=0)
    device: str = setting("auto", "cpu, cuda, cuda:1 …; auto is the GPU where there is one")
    precision: str = setting("auto", "of products; auto is bfloat16", choices=("auto", "bfloat16", "float32"))
    compile: bool = setting(False, "compile the networks with torch.compile")


@dataclass(frozen=True, kw_only=True)
class Data(Flags):
    """Which images."""

    dataset: str = setting("uoft-cs/cifar100", "a hub id, or a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    label_column: str | None = setting(None, "of a hub data set with several columns of classes", metavar="NAME")
    classes: int | None = setting(None, "the first so many classes (default: all)", type=int, at_least=1)
    per_class: int | None = setting(
        None, "the first so many training images of each class (default: all)", type=int, at_least=1
    )
    image_size: int = setting(32, "pixels a side of what the network sees", type=int, at_least=1)
    cache_size: int | None = setting(
        None,
        "pixels a side of the decoded images that crops are taken of (default: --image-size)",
        type=int,
        at_least=1,
    )
    skip_bad: bool = setting(False, "leave out images that cannot be read")
    on_device: str = setting(
        "auto", "keep the decoded images in the device's memory; auto: where half of what is free holds them",
        choices=("auto", "yes", "no"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pretrain(Flags):
    """Contrastive pretraining (section 3.1.1, appendix A.1)."""

    methods: tuple[str, ...] = setting(METHODS, "simclr, ncl, or both with a comma", type=words, items=METHODS)
    epochs: int = setting(200, "passes over the images", type=int, at_least=1)
    batch_size: int = setting(256, "images a step, of all processes together", type=int, at_least=1)
    accumulation: int = setting(
        1,
        "parts that a process's images go through the network in; all stay negatives of each other",
        type=int,
        at_least=1,
    )
    learning_rate: float = setting(0.4, "for 256 images; scaled with --batch-size", type=float, at_least=0)
    weight_decay: float = setting(1e-4, "of weights, not of biases and norms", type=float, at_least=0)
    momentum: float = setting(0.9, "of LARS", type=float, at_least=0)
    trust: float = setting(0.02, "LARS's trust coefficient, eta", type=float, at_least=0)
    warmup_epochs: int = setting(
        10, "of a learning rate that rises linearly; then it falls as a cosine", type=int, at_least=0
    )
    temperature: float = setting(0.2, "of NT-Xent", type=float, above=0)
    stem: str = setting(
        "cifar", "of the ResNet: 3x3 for small images (strided: at half their size), or the original",
        choices=("cifar", "cifar-strided", "imagenet"),
    )  # fmt: skip
    width: int = setting(64, "channels of the ResNet-18's first stage", type=int, at_least=1)
    projector_hidden: int = setting(16384, "units", type=int, at_least=1)
    projector_out: int = setting(2048, "dimensions of the representation", type=int, at_least=1)
    crop_min: float = setting(
        0.08, "smallest share of an image's area that a crop takes", type=float, above=0, at_most=1
    )
    jitter: float = setting(
        0.8, "strength of brightness, contrast and saturation; a quarter of it of hue", type=float, at_least=0
    )
    jitter_probability: float = setting(0.8, "of jitter", type=float, at_least=0, at_most=1)
    grey_probability: float = setting(0.2, "of an image without colours", type=float, at_least=0, at_most=1)
    blur_probability: float = setting(0.5, "of a Gaussian blur of 0.1 to 2 pixels", type=float, at_least=0, at_most=1)
    save_epochs: int = setting(5, "epochs between checkpoints", type=int, at_least=1)


@dataclass(frozen=True, kw_only=True)
class Sae(Flags):
    """The top-k sparse autoencoder on SimCLR's features (section 3.1.1, equation 2)."""

    latents: int | None = setting(
        None, "units (default: as many as the features have dimensions)", type=int, at_least=1
    )
    k: int = setting(256, "units kept for an image", type=int, at_least=1)
    epochs: int = setting(50, "passes over the features", type=int, at_least=1)
    batch_size: int = setting(1024, "features a step", type=int, at_least=1)
    learning_rate: float = setting(1e-4, "of Adam", type=float, at_least=0)
    unit_norm: bool = setting(False, "keep the decoder's columns at norm 1, gradients projected")
    auxiliary: float = setting(
        0.0, "weight of the loss in which dead units explain what is left (1/32 is usual)", type=float, at_least=0
    )
    auxiliary_k: int = setting(256, "dead units used for it", type=int, at_least=1)
    dead_after: int = setting(
        10_000, "images without activation that make a unit dead in training", type=int, at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Probe(Flags):
    """Linear classifiers on frozen features (section 3.1.2, appendices A.1 and C)."""

    noise_rates: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "shares of wrong training labels",
        type=numbers,
        at_least=0,
        at_most=1,
    )
    label_seeds: int = setting(5, "draws of wrong labels, for each rate", type=int, at_least=1)
    losses: tuple[str, ...] = setting(LOSSES, "ce, sce (symmetric cross entropy), or both", type=words, items=LOSSES)
    sce_alpha: float = setting(6.0, "weight of the cross entropy in sce", type=float, at_least=0)
    sce_beta: float = setting(0.1, "weight of the reverse cross entropy in sce", type=float, at_least=0)
    epochs: int = setting(50, "passes over the features", type=int, at_least=1)
    batch_size: int = setting(256, "features a step", type=int, at_least=1)
    learning_rate: float = setting(
        2.0, "of SGD with momentum 0.9, at its start; it falls as a cosine", type=float, at_least=0
    )
    weight_decay: float = setting(0.0, "of the weights", type=float, at_least=0)
    augment: bool = setting(False, "crop and flip the images anew in every epoch, instead of cached features")
    noise_scales: tuple[float, ...] = setting(
        (0.2, 0.4, 0.6, 0.8, 1.0), "of noise added to normalised validation images", type=numbers, at_least=0
    )
    ood: tuple[str, ...] = setting(
        (), "validation images of another kind, in CLASS/*.jpg as --dataset names its classes; once each",
        metavar="NAME=FOLDER", action="append",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finetune(Flags):
    """All weights, with CE or NCE, on few or wrongly labelled images (section 3.2, appendix A.2)."""

    objectives: tuple[str, ...] = setting(OBJECTIVES, "ce, nce, or both", type=words, items=OBJECTIVES)
    fractions: tuple[float, ...] = setting(
        (0.1, 0.2, 0.5, 1.0), "shares of each class's training images", type=numbers, above=0, at_most=1
    )
    noise_rates: tuple[float, ...] = setting(
        (0.2, 0.4, 0.6, 0.8), "shares of wrong labels, on all training images", type=numbers, at_least=0, at_most=1
    )
    epochs: int = setting(100, "passes over the images", type=int, at_least=1)
    batch_size: int = setting(256, "images a step", type=int, at_least=1)
    learning_rate: float = setting(
        0.05, "of SGD with momentum 0.9, at its start; it falls as a cosine", type=float, at_least=0
    )
    weight_decay: float = setting(1e-4, "of all weights", type=float, at_least=0)
    draws: int = setting(
        1, "seeds of the images drawn, the wrong labels, and the order, on each encoder", type=int, at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Consistency(Flags):
    """Semantic consistency, and which dimensions a noisy classifier trusts (section 4.1)."""

    noise_rate: float = setting(0.9, "of the classifiers that are looked at", type=float, at_least=0, at_most=1)
    threshold: float = setting(1e-5, "an activation is larger than this", type=float, at_least=0)
    images: int = setting(8, "top images of a dimension that are shown", type=int, at_least=1)
    dimensions: int = setting(
        4, "dimensions of each representation that are shown, drawn among the live", type=int, at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections of a config."""

    common: Common = field(default_factory=Common)
    data: Data = field(default_factory=Data)
    pretrain: Pretrain = field(default_factory=Pretrain)
    sae: Sae = field(default_factory=Sae)
    probe: Probe = field(default_factory=Probe)
    finetune: Finetune = field(default_factory=Finetune)
    consistency: Consistency = field(default_factory=Consistency)

    def check(self, step: str) -> None:
        """Refuse what no run can have.

        Args:
            step: that is to be run, or ``all``.

        Raises:
            InputError: for a value out of range, naming its flag.
        """
        if not self.common.out:
            raise InputError("Where to? Give the folder of the runs with --out, or as `out` in the config.")
        for section in fields(self):
            getattr(self, section.name).check()
        if not self.common.seeds:
            raise InputError("--seeds needs at least one number.")
        if self.data.cache_size is not None and self.data.cache_size < self.data.image_size:
            raise InputError(
                f"--cache-size {self.data.cache_size} is smaller than --image-size {self.data.image_size}: crops would "
                "be blown up. Leave it out, or make it larger."
            )
        if self.pretrain.batch_size < 2 * self.pretrain.accumulation:
            raise InputError(
                f"--batch-size {self.pretrain.batch_size} in {self.pretrain.accumulation} parts leaves less than 2 "
                "images a part, of which a batch norm has no statistics. Lower --accumulation."
            )
        # without --latents, the step alone asks the encoder that is there
        latents = self.sae.latents or (self.pretrain.projector_out if step == "all" else self.sae.k)
        if step in ("sae", "all") and self.sae.k > latents:
            raise InputError(f"--k {self.sae.k} is more than the autoencoder's {latents} latents. Lower --k.")


# The flags of a step: those that all have, and those of its own section, over a config's.


SECTIONS: Mapping[str, type[Any]] = {
    "data": Data,
    "pretrain": Pretrain,
    "sae": Sae,
    "probe": Probe,
    "finetune": Finetune,
    "consistency": Consistency,
}


def parse(words: Sequence[str], step: str, description: str | None = None) -> Settings:
    """The settings in the words of a command line, over those of ``--config``.

    Args:
        words: flags and values.
        step: a section's name, or another step's, which has the flags of all steps only.
        description: for ``--help``.

    Raises:
        InputError: for flags, keys and values that cannot be.
    """
    path, typed = split_config(list(words))
    given = _of_file(load_yaml(path), f"--config {path}") if path else {}
    own = [Common, Data, *([SECTIONS[step]] if step in SECTIONS and step != "data" else [])]
    parser = FlagParser(f"monolora vision {step}", description)
    parser.add_argument("--config", metavar="FILE", help="settings from a YAML file; the command line overrides it")
    for section in own:
        parser.add_settings(fields(section), given.get(_name(section)))
    parsed = vars(parser.parse(typed))
    names = {word.partition("=")[0][2:].replace("-", "_") for word in typed if word.startswith("--")}
    names |= {name.removeprefix("no_") for name in names}
    for section in own:
        known = {each.name for each in fields(section)}
        values = {name: frozen(parsed[name]) for name in known & names}
        given[_name(section)] = given.get(_name(section), {}) | values
    settings = Settings(
        common=Common(**given.get("common", {})),
        **{name: section(**given.get(name, {})) for name, section in SECTIONS.items()},
    )
    settings.check(step)
    return settings


def _of_file(loaded: Mapping[Any, Any], where: str) -> dict[str, dict[str, Any]]:
    """Sections of a config; what all steps have stands beside the sections."""
    sections: dict[str, dict[str, Any]] = {}
    common: dict[Any, Any] = {}
    for key, value in loaded.items():
        if isinstance(value, dict):
            if key not in SECTIONS:
                raise InputError(f"{where}: {unknown('section', str(key), SECTIONS)}")
            sections[key] = settings_in(value, fields(SECTIONS[key]), f"{where}, {key}")
        elif key in SECTIONS:
            if value is None:  # a section with all its keys commented out
                continue
            raise InputError(f"{where}: {key} is a section and needs settings below it, got {value!r}.")
        else:
            common[key] = value
    sections["common"] = settings_in(common, fields(Common), where)
    return sections


def _name(section: type[Any]) -> str:
    return section.__name__.lower()
