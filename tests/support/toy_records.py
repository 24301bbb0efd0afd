"""Made-up records of the toy model, in the format of ``monolora superposition run``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from monolora.recipes import experiment_steps

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCALES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def make_records(
    out: Path,
    seeds: int = 3,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    train_samples: Sequence[int] = (1000, 5000),
    rates: Sequence[float] = RATES,
    scales: Sequence[float] = SCALES,
    W_Ssmn: np.ndarray | None = None,
) -> None:
    """Write a folder of records.

    Args:
        out: the folder.
        seeds: of each sparsity.
        sparsities: in the order of the records, 0 among them.
        train_samples: one record of classifiers for each.
        rates: of label noise.
        scales: of input noise.
        W_Ssmn: the encoders; made up unless given, 12 features in 6 dimensions.
    """
    if W_Ssmn is None:
        W_Ssmn = np.array([[_encoder(S, seed) for seed in range(seeds)] for S in sparsities], np.float32)
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "encoders.safetensors"
    save_file({"W": W_Ssmn, "b": np.zeros_like(W_Ssmn[:, :, 0])}, weights)
    norms, dimensionality, paired = (
        {str(S): [function(W).tolist() for W in W_smn] for S, W_smn in zip(sparsities, W_Ssmn, strict=True)}
        for function in (_norms, _dimensionality, _paired)
    )
    experiment_steps.write(
        out / "encoders.json",
        {"sparsities": list(sparsities), "seeds": seeds},
        {},
        {
            "loss": {str(S): [0.1] * seeds for S in sparsities},
            "norms": norms, "dimensionality": dimensionality, "paired": paired, "seconds": 1.0,
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
    )  # fmt: skip
    fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest()
    for samples in train_samples:
        numbers = np.random.default_rng([samples, seeds])
        accuracy = {str(S): _accuracies(S, samples, numbers, seeds, rates, scales) for S in sparsities}
        fitted = {
            str(S): {name: {str(rate): [0.5] * seeds for rate in rates} for name in accuracy["0.0"]} for S in sparsities
        }
        results = {"accuracy": accuracy, "fitted": fitted, "seconds": 1.0}
        experiment_steps.write(
            out / f"noise-{samples}.json", {"train_samples": samples}, {"encoders": fingerprint}, results
        )


def _encoder(S: float, seed: int) -> np.ndarray:
    """Twelve features: six alone where dense; a pair and six alone at 0.5; six pairs where sparse; rotated."""
    numbers = np.random.default_rng([round(100 * S), seed])
    W_mn = np.zeros((6, 12))
    W_mn[:, :6] = np.eye(6)
    if S > 0:
        for feature in range(1 if S <= 0.5 else 6):
            W_mn[feature, 6 + (feature + seed) % 6 if S > 0.5 else 6] = -0.9
    return np.linalg.qr(numbers.normal(size=(6, 6)))[0] @ (W_mn + numbers.normal(0, 0.01, W_mn.shape))


def _norms(W_mn: np.ndarray) -> np.ndarray:
    return np.sqrt((W_mn.astype(float) ** 2).sum(0))


def _dimensionality(W_mn: np.ndarray) -> np.ndarray:
    unit_mn = W_mn / np.maximum(_norms(W_mn), 1e-12)
    return _norms(W_mn) ** 2 / ((unit_mn.T @ W_mn) ** 2).sum(1)


def _paired(W_mn: np.ndarray) -> np.ndarray:
    unit_mn = W_mn / _norms(W_mn)
    represented_n = _norms(W_mn) > 0.5
    cosine_nn = np.where(represented_n[:, None] & represented_n, unit_mn.T @ unit_mn, 0)
    return cosine_nn.min(1) < -0.9


def _accuracies(
    S: float, samples: int, numbers: np.random.Generator, seeds: int, rates: Sequence[float], scales: Sequence[float]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Poly begins higher and falls faster, as a real run did; at S = 0 mono is poly."""
    rise = 1 if samples >= 5000 else 0.93
    clean = {"mono": 0.45 * rise, "poly": (0.45 + 0.4 * S) * rise}
    fall = {"mono": 0.45, "poly": 0.45 + 0.35 * S}
    by_encoder = {
        name: {
            "label": {str(rate): _spread(clean[name] * (1 - fall[name] * rate**4), numbers, seeds) for rate in rates},
            "input": {
                str(scale): _spread(clean[name] / (1 + (6 * fall[name] * scale) ** 2), numbers, seeds)
                for scale in scales
            },
        }
        for name in clean
    }
    return {"mono": by_encoder["mono"], "poly": by_encoder["mono"]} if S == 0 else by_encoder


def _spread(mean: float, numbers: np.random.Generator, seeds: int) -> list[float]:
    return (mean + numbers.normal(0, 0.006, seeds)).round(4).tolist()
