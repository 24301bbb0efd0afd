"""Linear classifiers, many groups of them trained at once by softmax regression.

The R classifiers of a group have the same inputs, each with its own labels. The problem is convex: all start at zero;
SGD with momentum follows a learning rate that falls as a cosine, with gradients that are written out. Inputs get a
last entry of 1, whose weights are the bias.

Shapes, beside the package's: D inputs of a classifier, E = D + 1; Q = C * R rows of the weights, class by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from monolora.errors import RunError
from monolora.recipes.experiment_steps import generator_of, noisy_labels, softmax_into
from monolora.recipes.superposition.settings import MONO, POLY, Run
from monolora.recipes.superposition.toy_model import Labelled, labelled_samples

MOMENTUM = 0.9
_CACHED = 2**21  # logits of a step that a CPU takes at once: fewer waste time between threads; a GPU takes all
_ORDER = [0, 100]  # apart from what any seed of a run is of


class Classifiers(NamedTuple):
    """G x R classifiers: the logits of h are ``weight @ (h / scale, 1)``.

    Attributes:
        weight_GCRE: ``float32``, the biases last.
        scale_G: of each group, the root mean square of the training inputs' norms.
    """

    weight_GCRE: torch.Tensor
    scale_G: torch.Tensor

    def accuracy(self, h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> torch.Tensor:
        """The share that each classifier gets right: ``float64``, ``(G, R)``, on the CPU.

        Classes that no training label has end with the same weights: where such tie for the largest logit, each is
        right in part.

        Args:
            h_GND: inputs of each group, as they come.
            labels_GRN: of each classifier; R may be 1, and G may be.
        """
        groups, classes, rates, _ = self.weight_GCRE.shape
        h_GND, labels_GRN = h_GND.to(self.weight_GCRE), labels_GRN.to(self.weight_GCRE.device)
        labels_GRN = labels_GRN.expand(groups, rates, -1)
        right_GR = torch.zeros(groups, rates, dtype=torch.float64)
        pieces = math.ceil(h_GND.shape[1] * classes * rates / _CACHED)
        for group, (weight_CRE, scale) in enumerate(zip(*self, strict=True)):
            x_NE = _with_ones(h_GND[group] / scale)
            for x_BE, labels_RB in zip(x_NE.chunk(pieces), labels_GRN[group].chunk(pieces, -1), strict=True):
                logits_CRB = (weight_CRE.flatten(0, 1) @ x_BE.T).view(classes, rates, -1)
                most_RB, of_label_RB = logits_CRB.amax(0), logits_CRB.gather(0, labels_RB.unsqueeze(0)).squeeze(0)
                right_RB = (of_label_RB == most_RB) / (logits_CRB == most_RB).sum(0)
                right_GR[group] += right_RB.sum(-1, dtype=torch.float64).cpu()
        return right_GR / h_GND.shape[1]

    def of_rate(self, place: int) -> Classifiers:
        """One classifier of each group."""
        return self._replace(weight_GCRE=self.weight_GCRE[:, :, [place]])


def train_classifiers(h_GND: torch.Tensor, labels_GRN: torch.Tensor, classes: int, settings: Run) -> Classifiers:
    """Train R classifiers on the inputs of each group.

    Args:
        h_GND: inputs, on the device that trains.
        labels_GRN: ``int64``.
        classes: C.
        settings: epochs, batch size, learning rate, weight decay.

    Raises:
        RunError: if the weights do not stay finite.
    """
    logits = classes * labels_GRN.shape[1] * min(settings.batch_size, h_GND.shape[1])
    at_once = max(1, _CACHED // logits) if h_GND.device.type == "cpu" else len(h_GND)
    parts = [
        _train(h_gND, labels_gRN, classes, settings)
        for h_gND, labels_gRN in zip(h_GND.split(at_once), labels_GRN.split(at_once), strict=True)
    ]
    return Classifiers(*map(torch.cat, zip(*parts, strict=True)))


def _train(h_GND: torch.Tensor, labels_GRN: torch.Tensor, classes: int, settings: Run) -> Classifiers:
    (groups, count, _), rates = h_GND.shape, labels_GRN.shape[1]
    scale_G = h_GND.square().sum(-1).mean(-1).sqrt()
    scale_G = torch.where(scale_G > 0, scale_G, 1.0)  # an encoder may have learned nothing
    x_GNE, labels_GRN = _with_ones(h_GND / scale_G.view(-1, 1, 1)), labels_GRN.to(h_GND.device)
    zeros_GQE = torch.zeros(groups, classes * rates, x_GNE.shape[-1], device=h_GND.device)
    weights = _Weights(zeros_GQE, min(settings.batch_size, count), settings.weight_decay)
    steps, step = settings.epochs * math.ceil(count / settings.batch_size), 0
    for epoch in range(settings.epochs):
        # one order for all groups: samples are independent, and so are seeds
        order_N = torch.randperm(count, generator=generator_of([*_ORDER, epoch])).to(h_GND.device)
        x_epoch_GNE, labels_epoch_GRN = x_GNE[:, order_N], labels_GRN[:, :, order_N]
        for start in range(0, count, settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            falling = (1 + math.cos(math.pi * step / steps)) / 2
            weights.step(x_epoch_GNE[:, batch], labels_epoch_GRN[:, :, batch], settings.learning_rate * falling)
            step += 1
    if not weights.weight_GQE.isfinite().all():
        raise RunError(
            f"The linear classifiers diverged. Lower --learning-rate ({settings.learning_rate}) or --weight-decay "
            f"({settings.weight_decay})."
        )
    return Classifiers(weights.weight_GQE.view(groups, classes, rates, -1), scale_G)


class _Weights:
    """The weights, and the memory that a step needs: fresh memory costs as much time as the arithmetic."""

    def __init__(self, weight_GQE: torch.Tensor, most_samples: int, weight_decay: float) -> None:
        self.weight_GQE, self.weight_decay = weight_GQE, weight_decay
        self.momentum_GQE, self.gradient_GQE = torch.zeros_like(weight_GQE), torch.empty_like(weight_GQE)
        self.logits = weight_GQE.new_empty(weight_GQE.shape[:2].numel() * most_samples)
        self.p = torch.empty_like(self.logits)

    def step(self, x_GBE: torch.Tensor, labels_GRB: torch.Tensor, learning_rate: float) -> None:
        """One step of SGD."""
        (groups, rows, _), (_, rates, count) = self.weight_GQE.shape, labels_GRB.shape
        size = groups * rows * count
        logits_GQB, p_GQB = (flat[:size].view(groups, rows, count) for flat in (self.logits, self.p))
        torch.bmm(self.weight_GQE, x_GBE.mT, out=logits_GQB)
        shape = groups, rows // rates, rates, count
        logit_gradients(logits_GQB.view(shape), labels_GRB, p_GQB.view(shape))
        torch.bmm(p_GQB, x_GBE, out=self.gradient_GQE)
        torch.add(self.gradient_GQE, self.momentum_GQE, alpha=MOMENTUM, out=self.momentum_GQE)
        if self.weight_decay:
            self.momentum_GQE[..., :-1].add_(self.weight_GQE[..., :-1], alpha=self.weight_decay)
        self.weight_GQE.sub_(self.momentum_GQE, alpha=learning_rate)


def logit_gradients(logits_GCRB: torch.Tensor, labels_GRB: torch.Tensor, out_GCRB: torch.Tensor) -> None:
    """Of the mean cross entropy over a batch: ``(softmax - onehot) / B``; the logits are kept."""
    labels_G1RB, count = labels_GRB.unsqueeze(1), labels_GRB.shape[-1]
    softmax_into(out_GCRB, logits_GCRB, 1, count)
    out_GCRB.scatter_add_(1, labels_G1RB, out_GCRB.new_full((), -1 / count).expand_as(labels_G1RB))


def _with_ones(x_ND: torch.Tensor) -> torch.Tensor:
    return F.pad(x_ND, (0, 1), value=1.0)


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
