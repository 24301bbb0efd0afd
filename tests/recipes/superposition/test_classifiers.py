"""Batched softmax regression, against autograd, plain SGD, scikit-learn and loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from monolora.errors import RunError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.superposition import classifiers
from monolora.recipes.superposition.classifiers import Classifiers, logit_gradients, train_classifiers
from monolora.recipes.superposition.settings import Run

GROUPS, RATES, COUNT, DIM, CLASSES = 3, 2, 60, 4, 5
SETTINGS = Run(epochs=3, batch_size=25, learning_rate=1.0, weight_decay=0.01)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="labels_GRN")
def _labels() -> torch.Tensor:
    return torch.randint(CLASSES, (GROUPS, RATES, COUNT), generator=torch.Generator().manual_seed(1))


@pytest.fixture(name="h_GND")
def _inputs(labels_GRN: torch.Tensor) -> torch.Tensor:
    """Of which a part can be told from the first labels; each group of another size."""
    sizes = torch.tensor([0.1, 1.0, 30.0]).view(-1, 1, 1)
    return sizes * (random(2, GROUPS, COUNT, DIM) + random(3, CLASSES, DIM)[labels_GRN[:, 0]])


def test_gradient_is_autograds(labels_GRN: torch.Tensor) -> None:
    logits = (3 * random(4, GROUPS, CLASSES, RATES, COUNT)).double().requires_grad_()
    out = torch.empty_like(logits)
    with torch.no_grad():
        logit_gradients(logits, labels_GRN, out)
    # each classifier has a mean loss of its own
    loss = F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels_GRN.flatten(0, 1), reduction="none")
    loss.mean(-1).sum().backward()
    torch.testing.assert_close(out, logits.grad)


def test_gradient_of_large_logits_is_finite() -> None:
    logits = torch.tensor([1000.0, -1000.0, 999.0]).view(1, 3, 1, 1)
    out = torch.empty_like(logits)
    logit_gradients(logits, torch.tensor([[[1]]]), out)
    p = 1 / (1 + math.exp(-1.0))
    assert out.flatten().tolist() == pytest.approx([p, -1, 1 - p], abs=1e-4)


def test_together_is_plain_sgd(h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> None:
    """torch's SGD and autograd, one classifier at a time, on the same batches."""
    trained = train_classifiers(h_GND, labels_GRN, CLASSES, SETTINGS)
    assert trained.weight_GCRE.dtype == torch.float32
    for group in range(GROUPS):
        scale = math.sqrt(sum(float(value) ** 2 for value in h_GND[group].flatten()) / COUNT)
        assert float(trained.scale_G[group]) == pytest.approx(scale, rel=1e-5)
        for rate in range(RATES):
            weight, bias = (torch.zeros(CLASSES, *shape, requires_grad=True) for shape in ((DIM,), ()))
            sgd = torch.optim.SGD(
                [{"params": [weight], "weight_decay": SETTINGS.weight_decay}, {"params": [bias]}],
                lr=SETTINGS.learning_rate, momentum=0.9,
            )  # fmt: skip
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3 * 3)
            for epoch in range(3):
                for places in torch.randperm(COUNT, generator=generator_of([0, 100, epoch])).split(25):
                    logits = h_GND[group, places] / scale @ weight.T + bias
                    sgd.zero_grad()
                    F.cross_entropy(logits, labels_GRN[group, rate, places]).backward()
                    sgd.step()
                    cosine.step()
            expected = torch.cat([weight, bias.unsqueeze(1)], 1).detach()
            torch.testing.assert_close(trained.weight_GCRE[group, :, rate], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.003, 0.1])
def test_trained_is_the_optimum_of_scikit_learn(
    h_GND: torch.Tensor, labels_GRN: torch.Tensor, weight_decay: float
) -> None:
    """Mean cross entropy + decay / 2 x squared weights, biases free."""
    settings = Run(epochs=1500, batch_size=COUNT, learning_rate=2.0, weight_decay=weight_decay)
    trained = train_classifiers(h_GND, labels_GRN, CLASSES, settings)
    for group, rate in ((0, 0), (1, 1), (2, 0)):
        x_ND = (h_GND[group] / trained.scale_G[group]).numpy()
        optimum = LogisticRegression(C=1 / (COUNT * weight_decay), tol=1e-8, max_iter=10_000)
        optimum.fit(x_ND, labels_GRN[group, rate].numpy())
        weight_CE = trained.weight_GCRE[group, :, rate]
        torch.testing.assert_close(weight_CE[:, :-1], torch.from_numpy(optimum.coef_), rtol=0.01, atol=2e-3)
        bias_C = weight_CE[:, -1] - weight_CE[:, -1].mean()  # a shift of all biases changes nothing
        expected = torch.from_numpy(optimum.intercept_ - optimum.intercept_.mean())
        torch.testing.assert_close(bias_C, expected, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("cached", [1, 700, 10**9])
def test_how_many_are_trained_at_once_does_not_matter(
    h_GND: torch.Tensor, labels_GRN: torch.Tensor, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_classifiers(h_GND, labels_GRN, CLASSES, SETTINGS)
    right = expected.accuracy(h_GND, labels_GRN)
    monkeypatch.setattr(classifiers, "_CACHED_LOGITS", cached)
    in_parts = train_classifiers(h_GND, labels_GRN, CLASSES, SETTINGS)
    torch.testing.assert_close(in_parts.weight_GCRE, expected.weight_GCRE)
    torch.testing.assert_close(in_parts.accuracy(h_GND, labels_GRN), right)


def test_the_size_of_inputs_does_not_matter(h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> None:
    first, other = (train_classifiers(h, labels_GRN, CLASSES, SETTINGS) for h in (h_GND, 1000 * h_GND))
    torch.testing.assert_close(other.weight_GCRE, first.weight_GCRE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.scale_G, 1000 * first.scale_G)


def test_accuracy_is_that_of_a_loop(h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> None:
    some = Classifiers(random(5, GROUPS, CLASSES, RATES, DIM + 1), torch.tensor([0.5, 1.0, 2.0]))
    accuracy_GR = some.accuracy(h_GND, labels_GRN)
    assert accuracy_GR.shape == (GROUPS, RATES)
    for group in range(GROUPS):
        for rate in range(RATES):
            weight_CE = some.weight_GCRE[group, :, rate]
            right = 0
            for h, label in zip(h_GND[group] / some.scale_G[group], labels_GRN[group, rate], strict=True):
                logits = [float(weight[:-1] @ h + weight[-1]) for weight in weight_CE]
                right += logits.index(max(logits)) == int(label)
            assert float(accuracy_GR[group, rate]) == pytest.approx(right / COUNT)


def test_labels_may_be_shared_and_a_rate_chosen(h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> None:
    trained = train_classifiers(h_GND, labels_GRN, CLASSES, SETTINGS)
    shared = labels_GRN[:1, :1]
    expected = trained.accuracy(h_GND, shared.expand(GROUPS, RATES, -1).contiguous())
    assert torch.equal(trained.accuracy(h_GND, shared), expected)
    for rate in range(RATES):
        assert torch.equal(trained.of_rate(rate).accuracy(h_GND, shared), expected[:, [rate]])


def test_inputs_that_are_all_zero_give_the_commonest_class() -> None:
    """An encoder may have learned nothing. Two classes that no label has tie, and are never the largest."""
    labels = torch.tensor([[[0, 1, 1, 1, 2, 2]]])
    trained = train_classifiers(torch.zeros(1, 6, 3), labels, 5, replace(SETTINGS, epochs=50))
    assert trained.accuracy(torch.zeros(1, 6, 3), labels).item() == pytest.approx(3 / 6)


def test_ties_are_right_in_part() -> None:
    tied = Classifiers(torch.zeros(1, 4, 1, 3), torch.ones(1))
    assert tied.accuracy(random(6, 1, 8, 2), torch.arange(8).remainder(4).view(1, 1, 8)).item() == pytest.approx(1 / 4)


def test_classes_that_can_be_told_apart_are(labels_GRN: torch.Tensor) -> None:
    h_GND = F.one_hot(labels_GRN[:, 0], CLASSES).float()
    trained = train_classifiers(h_GND, labels_GRN, CLASSES, SETTINGS)
    accuracy_GR = trained.accuracy(h_GND, labels_GRN)
    assert accuracy_GR[:, 0].tolist() == [1.0] * GROUPS
    assert bool((accuracy_GR[:, 1] < 0.6).all())


def test_divergence_names_what_to_lower(h_GND: torch.Tensor, labels_GRN: torch.Tensor) -> None:
    settings = Run(epochs=20, batch_size=10, learning_rate=1e6, weight_decay=1e6)
    with pytest.raises(RunError, match=r"classifiers diverged\. Lower --learning-rate \(1000000\.0\)"):
        train_classifiers(h_GND, labels_GRN, CLASSES, settings)
