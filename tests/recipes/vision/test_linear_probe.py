"""Classifiers trained at once are those trained alone; gradients are autograd's; losses are their formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from monolora.errors import InputError, RunError
from monolora.recipes.experiment_steps import noisy_labels
from monolora.recipes.vision.linear_probe import (
    CROSS_ENTROPY,
    LOG_ZERO,
    FeatureSource,
    Loss,
    Probes,
    cached_source,
    feature_scale,
    plain_probe,
    shuffled,
    symmetric_cross_entropy,
    train_probes,
)
from monolora.recipes.vision.settings import Probe

CPU = torch.device("cpu")
SCE = Loss(6.0, 0.1)
CLASSES, DIM, COUNT = 4, 7, 90
SETTINGS = Probe(epochs=3, batch_size=16, learning_rate=0.7)  # 90 = 5 x 16 + 10: the last batch is smaller


def orders(epoch: int) -> Sequence[torch.Tensor]:
    return shuffled(COUNT, SETTINGS.batch_size, [5, epoch])


@pytest.fixture(name="x_ND")
def _features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(COUNT, DIM, generator=generator, dtype=torch.float64)


@pytest.fixture(name="labels_MN")
def _labels() -> torch.Tensor:
    """The first two are the same."""
    labels = torch.arange(CLASSES).repeat(COUNT)[:COUNT]
    return torch.stack([noisy_labels(labels, CLASSES, rate, draw) for rate in (0.0, 0.5, 0.9) for draw in range(2)])


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SCE, Loss(0.0, 1.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_at_once_is_as_alone(x_ND: torch.Tensor, labels_MN: torch.Tensor, loss: Loss, weight_decay: float) -> None:
    settings = replace(SETTINGS, weight_decay=weight_decay)
    source = cached_source(x_ND, orders, torch.float64, CPU)
    probes = train_probes(source, labels_MN, CLASSES, [loss] * len(labels_MN), settings, torch.float64, CPU)
    criterion = partial(symmetric_cross_entropy, alpha=loss.alpha, beta=loss.beta)
    for index, labels_N in enumerate(labels_MN):
        alone = plain_probe(x_ND / probes.scale, labels_N, CLASSES, orders, settings, criterion)
        torch.testing.assert_close(probes.weight_MCD[index], alone.weight.detach())
        torch.testing.assert_close(probes.bias_MC[index], alone.bias.detach())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_low_precision_is_near(
    x_ND: torch.Tensor, labels_MN: torch.Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    losses = [CROSS_ENTROPY, SCE] * 3
    exact, near = (
        train_probes(cached_source(x_ND, orders, precision, CPU), labels_MN, CLASSES, losses, SETTINGS, precision, CPU)
        for precision in (torch.float64, dtype)
    )
    assert near.weight_MCD.dtype == torch.float32
    error = (near.weight_MCD - exact.weight_MCD).norm() / exact.weight_MCD.norm()
    assert 0 < error < tolerance


def test_losses_can_be_mixed(x_ND: torch.Tensor, labels_MN: torch.Tensor) -> None:
    source = cached_source(x_ND, orders, torch.float64, CPU)
    losses = [CROSS_ENTROPY, SCE, SCE, CROSS_ENTROPY, SCE, SCE]
    mixed = train_probes(source, labels_MN, CLASSES, losses, SETTINGS, torch.float64, CPU)
    for loss in (CROSS_ENTROPY, SCE):
        alike = train_probes(source, labels_MN, CLASSES, [loss] * 6, SETTINGS, torch.float64, CPU)
        indices = [index for index, own in enumerate(losses) if own == loss]
        torch.testing.assert_close(mixed.weight_MCD[indices], alike.weight_MCD[indices])


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SCE])
def test_first_step_is_autograds_gradient(x_ND: torch.Tensor, labels_MN: torch.Tensor, loss: Loss) -> None:
    """With one batch of all images and a learning rate of 1, the weights after a step are minus the gradient."""
    settings = Probe(epochs=1, batch_size=COUNT, learning_rate=1.0)
    source = cached_source(x_ND, lambda epoch: [torch.arange(COUNT)], torch.float64, CPU)
    probes = train_probes(source, labels_MN[4:5], CLASSES, [loss], settings, torch.float64, CPU)
    weight = torch.zeros(CLASSES, DIM, dtype=torch.float64, requires_grad=True)
    symmetric_cross_entropy(x_ND / probes.scale @ weight.T, labels_MN[4], *loss).backward()
    torch.testing.assert_close(probes.weight_MCD[0], -weight.grad)


def test_symmetric_cross_entropy_is_its_formula() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = [math.exp(logit) / sum(map(math.exp, row)) for logit in row]
        q = [float(index == label) for index in range(3)]
        forward = -sum(q[k] * math.log(p[k]) for k in range(3))
        reverse = -sum(p[k] * (math.log(q[k]) if q[k] else -9.210340371976182) for k in range(3))
        total += 6.0 * forward + 0.1 * reverse
    assert float(symmetric_cross_entropy(logits, labels, *SCE)) == pytest.approx(total / 5)
    assert math.exp(LOG_ZERO) == pytest.approx(1e-4)


def test_logits_are_of_features_as_they_come(x_ND: torch.Tensor) -> None:
    """Which classifier gets which feature right, against a loop; labels of all, or of each."""
    generator = torch.Generator().manual_seed(2)
    probes = Probes(
        torch.randn(3, CLASSES, DIM, generator=generator), torch.randn(3, CLASSES, generator=generator), 2.5
    )
    x_ND = x_ND.float()
    chosen = [
        [int((weight @ (x / 2.5) + bias).argmax()) for x in x_ND] for weight, bias in zip(*probes[:2], strict=True)
    ]
    labels = torch.arange(CLASSES).repeat(COUNT)[:COUNT]
    assert torch.equal(probes.correct(x_ND, labels), torch.tensor(chosen) == labels)
    assert bool(probes.correct(x_ND, torch.tensor(chosen)).all())
    assert torch.equal(probes.select(torch.tensor([2])).correct(x_ND, labels), (torch.tensor(chosen) == labels)[2:])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_the_size_of_features_does_not_matter(x_ND: torch.Tensor, labels_MN: torch.Tensor, size: float) -> None:
    first, other = (
        train_probes(
            cached_source(x, orders, torch.float64, CPU),
            labels_MN[:1], CLASSES, [CROSS_ENTROPY], SETTINGS, torch.float64, CPU,
        )
        for x in (x_ND, size * x_ND)
    )  # fmt: skip
    torch.testing.assert_close(other.weight_MCD, first.weight_MCD)
    assert other.scale == pytest.approx(size * first.scale)


def test_scale_is_the_root_mean_square_norm(x_ND: torch.Tensor) -> None:
    mean_square = sum(sum(value**2 for value in row) for row in x_ND.tolist()) / COUNT
    assert feature_scale(x_ND.float()) == pytest.approx(math.sqrt(mean_square), rel=1e-6)


@pytest.mark.parametrize(("dim", "spread", "lowest", "highest"), [(64, 0.0, 0.0, 0.4), (512, 1.0, 0.99, 1.0)])
def test_what_the_default_settings_learn(dim: int, spread: float, lowest: float, highest: float) -> None:
    """Features without classes give chance, those with separable ones nearly all, on images not trained on."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(5).repeat(80)
    x_ND = torch.randn(400, dim, generator=generator)
    x_ND += spread * torch.randn(5, dim, generator=generator)[labels]
    settings = Probe(epochs=10, batch_size=50)
    source = cached_source(x_ND[:300], lambda epoch: shuffled(300, 50, [epoch]), torch.float32, CPU)
    probes = train_probes(source, labels[None, :300], 5, [CROSS_ENTROPY], settings, torch.float32, CPU)
    accuracy = float(probes.correct(x_ND[300:], labels[300:]).float().mean())
    assert lowest <= accuracy <= highest


def test_divergence_names_what_to_lower(x_ND: torch.Tensor, labels_MN: torch.Tensor) -> None:
    settings = replace(SETTINGS, learning_rate=1e6, weight_decay=1e6, epochs=10)
    with pytest.raises(RunError, match=r"diverged in epoch \d+.*--learning-rate"):
        train_probes(
            cached_source(x_ND.float(), orders, torch.float32, CPU),
            labels_MN, CLASSES, [CROSS_ENTROPY] * 6, settings, torch.float32, CPU,
        )  # fmt: skip


@pytest.mark.parametrize(("value", "words"), [(0.0, "all zero"), (math.nan, "not finite"), (math.inf, "not finite")])
def test_features_that_cannot_be_scaled_are_refused(value: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        feature_scale(torch.full((3, 2), value))


def test_batches_come_from_the_source(x_ND: torch.Tensor, labels_MN: torch.Tensor) -> None:
    """Other features in each epoch, as crops give them, in another order."""
    seen = []

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seen.append(epoch)
        for indices in orders(epoch):
            yield indices, x_ND[indices] + epoch

    probes = train_probes(
        FeatureSource(DIM, 4.0, batches), labels_MN[:1], CLASSES, [CROSS_ENTROPY], SETTINGS, torch.float64, CPU
    )
    assert seen == [0, 1, 2]
    assert probes.scale == 4.0
    weight = torch.zeros(CLASSES, DIM + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=SETTINGS.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * 6)
    for epoch in range(3):
        for indices in orders(epoch):
            optimizer.zero_grad()
            x = F.pad(x_ND[indices] + epoch, (0, 1), value=1.0)
            F.cross_entropy(x @ weight.T, labels_MN[0, indices]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(probes.weight_MCD[0], weight.detach()[:, :-1])
