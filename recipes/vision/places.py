"""Where a step's results lie.

    OUT/METHOD-SEED/          an encoder: encoder.safetensors, pretrain.json, metrics.jsonl; features/ of its images
    OUT/sae-SEED/             the autoencoder on simclr-SEED: sae.safetensors, sae.json; features/ are its latents
    OUT/probe/                REPRESENTATION-SEED.json, and the classifiers as .safetensors
    OUT/finetune/             SEED.json
    OUT/consistency/          REPRESENTATION-SEED.json
    OUT/table1.*, OUT/figures/

Each .json is a record (``monolora.recipes.experiments.records``).
"""

from __future__ import annotations

from pathlib import Path


def encoder_folder(out: str | Path, method: str, seed: int) -> Path:
    """Of a representation: ``simclr``, ``ncl`` or ``sae``."""
    return Path(out) / f"{method}-{seed}"


def probe_file(out: str | Path, representation: str, seed: int) -> Path:
    """The record of the classifiers on a representation; their weights lie beside it, as ``.safetensors``."""
    return Path(out) / "probe" / f"{representation}-{seed}.json"


def finetune_file(out: str | Path, seed: int) -> Path:
    """The record of the finetuned copies of ``simclr-SEED``."""
    return Path(out) / "finetune" / f"{seed}.json"


def consistency_file(out: str | Path, representation: str, seed: int) -> Path:
    """The record of a representation's semantic consistency."""
    return Path(out) / "consistency" / f"{representation}-{seed}.json"
