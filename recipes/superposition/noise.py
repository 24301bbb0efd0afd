"""Linear classifiers on monosemantic and superposed representations, under wrong labels and noisy inputs (Figure 5b).

At each sparsity two encoders of a seed are compared on the same samples, wrong labels and noise: the one that was
trained on dense data (mono, S = 0) and the one that was trained on data of that sparsity (poly).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from monolora.recipes.experiments.generators import generator_of
from monolora.recipes.experiments.label_noise import noisy_labels
from monolora.recipes.superposition.classifiers import train_classifiers
from monolora.recipes.superposition.settings import MONO, POLY, Run
from monolora.recipes.superposition.toy.sparse_data import Labelled, labelled_samples

_TRAIN, _TEST, _LABELS, _NOISE = range(10, 14)  # what a seed is of, apart from those of training.py


def noise_results(W_Ssmn: torch.Tensor, settings: Run, train_samples: int, device: torch.device) -> dict[str, Any]:
    """Train and measure the classifiers of one number of training samples.

    Args:
        W_Ssmn: the encoders' weights, shape ``(S, seeds, m, n)``, in the order of the sparsities.
        settings: of the run.
        train_samples: N.
        device: where classifiers are trained.

    Returns:
        ``accuracy``: by sparsity, encoder (``mono``, ``poly``) and kind of noise (``label``, ``input``), and by its
        rate or scale, the accuracy on test samples of each seed. ``fitted``: by sparsity, encoder and rate, the share
        of training labels, wrong ones included, that are predicted.

    Raises:
        RunError: if the classifiers diverge.
    """
    mono_smn = W_Ssmn[settings.sparsities.index(0)]
    accuracy, fitted = {}, {}
    for sparsity, poly_smn in zip(settings.sparsities, W_Ssmn, strict=True):
        encoders = {MONO: mono_smn} | ({} if sparsity == 0 else {POLY: poly_smn})
        accuracy[str(sparsity)], fitted[str(sparsity)] = _of_sparsity(
            encoders, settings, sparsity, train_samples, device
        )
    return {"accuracy": accuracy, "fitted": fitted}


def _of_sparsity(
    encoders: Mapping[str, torch.Tensor], settings: Run, sparsity: float, train_samples: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracies and fitted shares of both encoders; where there is mono only, it is poly too."""
    seeds = range(settings.seeds)
    train = [labelled_samples(train_samples, settings.features, sparsity, seed, _TRAIN) for seed in seeds]
    test = [labelled_samples(settings.test_samples, settings.features, sparsity, seed, _TEST) for seed in seeds]
    W_Gmn = torch.cat(list(encoders.values())).to(device)  # encoder by encoder, seed by seed
    pairs = len(encoders)
    labels_GRN = torch.stack([_label_noise(settings, each, seed) for seed, each in enumerate(train)]).repeat(
        pairs, 1, 1
    )
    h_GNm = _encoded(W_Gmn, (each.x_Nn for each in train), pairs)
    trained = train_classifiers(h_GNm, labels_GRN, settings.features, settings)

    test_labels_G1N = torch.stack([each.labels_N for each in test]).unsqueeze(1).repeat(pairs, 1, 1)
    h_test_GNm = _encoded(W_Gmn, (each.x_Nn for each in test), pairs)
    z_GNm = _encoded(W_Gmn, (_gaussian(settings, seed) for seed in seeds), pairs)
    clean = trained.of_rate(settings.noise_rates.index(0))
    by_rate_GR = trained.accuracy(h_test_GNm, test_labels_G1N)
    by_scale_GR = torch.cat(
        [clean.accuracy(h_test_GNm + scale * z_GNm, test_labels_G1N) for scale in settings.noise_scales], 1
    )
    fitted_GR = trained.accuracy(h_GNm, labels_GRN)
    accuracy = _by_encoder(
        [
            {"label": _by_level(settings.noise_rates, label_sR), "input": _by_level(settings.noise_scales, input_sR)}
            for label_sR, input_sR in zip(by_rate_GR.chunk(pairs), by_scale_GR.chunk(pairs), strict=True)
        ]
    )
    return accuracy, _by_encoder([_by_level(settings.noise_rates, each_sR) for each_sR in fitted_GR.chunk(pairs)])


def _label_noise(settings: Run, of: Labelled, seed: int) -> torch.Tensor:
    """Labels at each noise rate, ``(R, N)``; a wrong one is the same wrong one at the higher rates."""
    return torch.stack(
        [noisy_labels(of.labels_N, settings.features, rate, [seed, _LABELS]) for rate in settings.noise_rates]
    )


def _gaussian(settings: Run, seed: int) -> torch.Tensor:
    """Of standard deviation 1, one for each entry of the test samples of all sparsities, ``(N, n)``."""
    return torch.randn(settings.test_samples, settings.features, generator=generator_of([seed, _NOISE]))


def _encoded(W_Gmn: torch.Tensor, x_sNn: Iterable[torch.Tensor], encoders: int) -> torch.Tensor:
    """``W x`` of each seed's samples, ``(G, N, m)``; linear, so that noise can be added after it."""
    return torch.bmm(torch.stack(list(x_sNn)).to(W_Gmn.device).repeat(encoders, 1, 1), W_Gmn.mT)


def _by_level(levels: Sequence[float], values_sR: torch.Tensor) -> dict[str, list[float]]:
    return dict(zip(map(str, levels), values_sR.T.tolist(), strict=True))


def _by_encoder(found: Sequence[Any]) -> dict[str, Any]:
    return {MONO: found[0], POLY: found[-1]}
