"""Linear classifiers on monosemantic and superposed representations, under label and input noise (figure 5b).

At each sparsity two encoders of a seed are compared on the same samples, wrong labels and noise: the one trained on
dense data (mono, S = 0) and the one trained on data of that sparsity (poly). Classifiers are trained by softmax
regression, many groups at once: the R classifiers of a group have the same inputs, each with its own labels.

The problem is convex. All classifiers start at zero; SGD with momentum follows a cosine schedule, and the gradients are
written out. Inputs get a last entry of 1, whose weights are the bias.

Shapes, besides the package's: D inputs of a classifier, E = D + 1; Q = C * R rows of the weights, class by class; s
seeds of one encoder.
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
# Logits that a CPU works on at a time: more leave its cache, fewer waste time between threads. A GPU takes all groups.
_CACHED_LOGITS = 2**21
_ORDER = [0, 100]  # the seed of the orders of samples: unlike any [seed, purpose] of a run
_TRAIN, _TEST, _LABELS, _NOISE = range(10, 14)  # purposes of a generator: unlike those of toy_model


# Softmax regression.


class Classifiers(NamedTuple):
    """G x R classifiers: the logits of h are ``weight @ (h / scale, 1)``.

    Attributes:
        weight_GCRE: ``float32``, the biases last.
        scale_G: of each group, the root mean square of the training inputs' norms.
    """

    weight_GCRE: torch.Tensor
    scale_G: torch.Tensor

    def accuracy(self, h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> torch.Tensor:
        """Each classifier's accuracy: ``float64``, ``(G, R)``, on the CPU.

        Classes that no training label has end with the same weights. Where k classes tie for the largest logit, each
        of them counts as right by 1 / k.

        Args:
            h_GND: inputs of each group, unscaled.
            labels_GRN: of each classifier; R and G may be 1.
        """
        groups, classes, rates, _ = self.weight_GCRE.shape
        h_GND, labels_GRN = h_GND.to(self.weight_GCRE), labels_GRN.to(self.weight_GCRE.device)
        labels_GRN = labels_GRN.expand(groups, rates, -1)
        right_GR = torch.zeros(groups, rates, dtype=torch.float64)
        chunks = math.ceil(h_GND.shape[1] * classes * rates / _CACHED_LOGITS)
        for group, (weight_CRE, scale) in enumerate(zip(*self, strict=True)):
            x_NE = _with_ones(h_GND[group] / scale)
            for x_BE, labels_RB in zip(x_NE.chunk(chunks), labels_GRN[group].chunk(chunks, -1), strict=True):
                logits_CRB = (weight_CRE.flatten(0, 1) @ x_BE.T).view(classes, rates, -1)
                max_RB, label_RB = logits_CRB.amax(0), logits_CRB.gather(0, labels_RB.unsqueeze(0)).squeeze(0)
                right_RB = (label_RB == max_RB) / (logits_CRB == max_RB).sum(0)
                right_GR[group] += right_RB.sum(-1, dtype=torch.float64).cpu()
        return right_GR / h_GND.shape[1]

    def of_rate(self, index: int) -> Classifiers:
        """The classifiers of one label noise rate, one in each group."""
        return self._replace(weight_GCRE=self.weight_GCRE[:, :, [index]])


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
    groups = max(1, _CACHED_LOGITS // logits) if h_GND.device.type == "cpu" else len(h_GND)
    parts = [
        _train(h_gND, labels_gRN, classes, settings)
        for h_gND, labels_gRN in zip(h_GND.split(groups), labels_GRN.split(groups), strict=True)
    ]
    return Classifiers(*map(torch.cat, zip(*parts, strict=True)))


def _train(h_GND: torch.Tensor, labels_GRN: torch.Tensor, classes: int, settings: Run) -> Classifiers:
    (groups, count, _), rates = h_GND.shape, labels_GRN.shape[1]
    scale_G = h_GND.square().sum(-1).mean(-1).sqrt()
    scale_G = torch.where(scale_G > 0, scale_G, 1.0)  # an encoder that learned nothing gives only zeros
    x_GNE, labels_GRN = _with_ones(h_GND / scale_G.view(-1, 1, 1)), labels_GRN.to(h_GND.device)
    zeros_GQE = torch.zeros(groups, classes * rates, x_GNE.shape[-1], device=h_GND.device)
    weights = _Weights(zeros_GQE, min(settings.batch_size, count), settings.weight_decay)
    steps, step = settings.epochs * math.ceil(count / settings.batch_size), 0
    for epoch in range(settings.epochs):
        # One order for all groups is enough: samples of different seeds are independent anyway.
        order_N = torch.randperm(count, generator=generator_of([*_ORDER, epoch])).to(h_GND.device)
        x_epoch_GNE, labels_epoch_GRN = x_GNE[:, order_N], labels_GRN[:, :, order_N]
        for start in range(0, count, settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            cosine = (1 + math.cos(math.pi * step / steps)) / 2
            weights.step(x_epoch_GNE[:, batch], labels_epoch_GRN[:, :, batch], settings.learning_rate * cosine)
            step += 1
    if not weights.weight_GQE.isfinite().all():
        raise RunError(
            f"The linear classifiers diverged. Lower --learning-rate ({settings.learning_rate}) or --weight-decay "
            f"({settings.weight_decay})."
        )
    return Classifiers(weights.weight_GQE.view(groups, classes, rates, -1), scale_G)


class _Weights:
    """Weights and momenta, and the buffers of a step: allocating them anew would cost as much as the arithmetic."""

    def __init__(self, weight_GQE: torch.Tensor, batch_size: int, weight_decay: float) -> None:
        self.weight_GQE, self.weight_decay = weight_GQE, weight_decay
        self.momentum_GQE, self.gradient_GQE = torch.zeros_like(weight_GQE), torch.empty_like(weight_GQE)
        self.logits = weight_GQE.new_empty(weight_GQE.shape[:2].numel() * batch_size)
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
        if self.weight_decay:  # of the weights, not of the biases
            self.momentum_GQE[..., :-1].add_(self.weight_GQE[..., :-1], alpha=self.weight_decay)
        self.weight_GQE.sub_(self.momentum_GQE, alpha=learning_rate)


def logit_gradients(logits_GCRB: torch.Tensor, labels_GRB: torch.Tensor, out_GCRB: torch.Tensor) -> None:
    """The gradient of a batch's mean cross entropy, ``(softmax - onehot) / B``, into ``out_GCRB``."""
    labels_G1RB, count = labels_GRB.unsqueeze(1), labels_GRB.shape[-1]
    softmax_into(out_GCRB, logits_GCRB, 1, count)
    out_GCRB.scatter_add_(1, labels_G1RB, out_GCRB.new_full((), -1 / count).expand_as(labels_G1RB))


def _with_ones(x_ND: torch.Tensor) -> torch.Tensor:
    return F.pad(x_ND, (0, 1), value=1.0)


# The experiment.


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
        accuracy[str(sparsity)], fitted[str(sparsity)] = _results_at(
            sparsity, encoders, settings, train_samples, device
        )
    return {"accuracy": accuracy, "fitted": fitted}


def _results_at(
    sparsity: float, encoders: Mapping[str, torch.Tensor], settings: Run, train_samples: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracies and fitted shares of both encoders on data of one sparsity; at S = 0, mono is poly too."""
    seeds = range(settings.seeds)
    train = [labelled_samples(train_samples, settings.features, sparsity, seed, _TRAIN) for seed in seeds]
    test = [labelled_samples(settings.test_samples, settings.features, sparsity, seed, _TEST) for seed in seeds]
    n = len(encoders)
    W_Gmn = torch.cat(list(encoders.values())).to(device)  # encoder by encoder, seed by seed
    labels_sRN = torch.stack([_noisy_labels(settings, samples, seed) for seed, samples in enumerate(train)])
    labels_GRN = labels_sRN.repeat(n, 1, 1)
    h_GNm = _representations(W_Gmn, (samples.x_Nn for samples in train), n)
    classifiers = train_classifiers(h_GNm, labels_GRN, settings.features, settings)

    test_labels_G1N = torch.stack([samples.labels_N for samples in test]).unsqueeze(1).repeat(n, 1, 1)
    h_test_GNm = _representations(W_Gmn, (samples.x_Nn for samples in test), n)
    z_GNm = _representations(W_Gmn, (_gaussian(settings, seed) for seed in seeds), n)
    clean = classifiers.of_rate(settings.noise_rates.index(0))
    by_rate_GR = classifiers.accuracy(h_test_GNm, test_labels_G1N)
    by_scale_GR = torch.cat(
        [clean.accuracy(h_test_GNm + scale * z_GNm, test_labels_G1N) for scale in settings.noise_scales], 1
    )
    fitted_GR = classifiers.accuracy(h_GNm, labels_GRN)
    accuracy = _by_encoder(
        [
            {"label": _by_level(settings.noise_rates, label_sR), "input": _by_level(settings.noise_scales, input_sR)}
            for label_sR, input_sR in zip(by_rate_GR.chunk(n), by_scale_GR.chunk(n), strict=True)
        ]
    )
    return accuracy, _by_encoder([_by_level(settings.noise_rates, fitted_sR) for fitted_sR in fitted_GR.chunk(n)])


def _noisy_labels(settings: Run, samples: Labelled, seed: int) -> torch.Tensor:
    """Labels at each noise rate, ``(R, N)``; a label wrong at one rate is the same wrong label at the higher rates."""
    return torch.stack(
        [noisy_labels(samples.labels_N, settings.features, rate, [seed, _LABELS]) for rate in settings.noise_rates]
    )


def _gaussian(settings: Run, seed: int) -> torch.Tensor:
    """Noise of standard deviation 1, the same for the test samples of all sparsities, ``(N, n)``."""
    return torch.randn(settings.test_samples, settings.features, generator=generator_of([seed, _NOISE]))


def _representations(W_Gmn: torch.Tensor, x_sNn: Iterable[torch.Tensor], encoders: int) -> torch.Tensor:
    """``W x`` of each seed's samples, ``(G, N, m)``; linear, so that noise can be added after it."""
    return torch.bmm(torch.stack(list(x_sNn)).to(W_Gmn.device).repeat(encoders, 1, 1), W_Gmn.mT)


def _by_level(levels: Sequence[float], values_sR: torch.Tensor) -> dict[str, list[float]]:
    return dict(zip(map(str, levels), values_sR.T.tolist(), strict=True))


def _by_encoder(results: Sequence[Any]) -> dict[str, Any]:
    """Of a single result, both are the same."""
    return {MONO: results[0], POLY: results[-1]}
