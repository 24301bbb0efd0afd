"""A step of pretraining: what it depends on, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monolora.errors import RunError
from monolora.recipes.vision import pretraining as module
from monolora.recipes.vision.pretraining import Pretraining
from tests.support import forks, pretraining_step
from tests.support.pretraining_step import pretraining, step_of


def _check_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name} {text}"
        )


def _moved(training: Pretraining, weights: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    return all(not torch.equal(weights[name], before[name]) for name, _ in training.encoder.named_parameters())


@pytest.mark.parametrize("method", ["simclr", "ncl"])
@pytest.mark.parametrize("parts", [2, 4, 5])
def test_in_parts_is_as_at_once(shapes: Path, method: str, parts: int) -> None:
    whole = pretraining(shapes, method)
    before = {name: value.clone() for name, value in whole.encoder.state_dict().items()}
    expected = step_of(whole)
    assert _moved(whole, expected, before)
    _check_close(step_of(pretraining(shapes, method, accumulation=parts)), expected)


@pytest.mark.parametrize("method", ["simclr", "ncl"])
def test_two_processes_are_as_one(shapes: Path, tmp_path: Path, method: str) -> None:
    """The negatives of both are gathered, with their gradients."""
    launcher = ["--config_file", "recipes/accelerate/ddp-cpu.yaml"]
    program = f"import runpy; runpy.run_module({pretraining_step.__name__!r}, run_name='__main__')"
    for done in forks.launch(launcher, program, shapes, method, tmp_path / "weights.pt"):
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout == "2 processes\n"
    _check_close(torch.load(tmp_path / "weights.pt", weights_only=True), step_of(pretraining(shapes, method)))


def test_labels_do_not_leak_into_the_encoder(shapes: Path) -> None:
    plain, shuffled = pretraining(shapes, "simclr"), pretraining(shapes, "simclr")
    shuffled._labels = shuffled._labels.flip(0)
    plain.run_epoch()
    shuffled.run_epoch()
    for name, tensor in plain.encoder.state_dict().items():
        assert torch.equal(tensor, shuffled.encoder.state_dict()[name]), name
    assert not torch.equal(plain.probe.weight, shuffled.probe.weight)


def test_the_online_classifier_is_sgd_on_the_features_of_each_step(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross entropy of both views by their images' labels; the accuracy is of the logits before each step."""
    training, step, hits, sums = pretraining(shapes, "simclr"), Pretraining._probe_step, [], [0.0, 0.0]

    def spied(self: Pretraining, backbone_2BF: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        assert not backbone_2BF.requires_grad
        parameters = [self.probe.weight, self.probe.bias]
        logits = self.probe(torch.cat([backbone_2BF[0], backbone_2BF[1]]))
        labels = torch.cat([labels_B, labels_B])
        hits.append(int((logits.argmax(1) == labels).sum()))
        loss = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        expected = []
        for index, gradient in enumerate(torch.autograd.grad(loss, parameters)):
            sums[index] = 0.9 * sums[index] + gradient
            expected.append((parameters[index] - 0.1 * sums[index]).detach())
        n_correct = step(self, backbone_2BF, labels_B)
        for parameter, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value)
        return n_correct

    monkeypatch.setattr(Pretraining, "_probe_step", spied)
    for _ in range(2):
        hits.clear()
        assert training.run_epoch().probe_accuracy == pytest.approx(sum(hits) / (2 * 48))
        assert len(hits) == 3


def test_the_online_classifier_learns(shapes: Path) -> None:
    """Features that a plane parts, again and again: a convex problem."""
    training = pretraining(shapes, "simclr")
    labels = training.images.labels_N
    noise = torch.randn(2, 48, 64, generator=torch.Generator().manual_seed(0))
    features = 5 * torch.eye(3, 64)[labels] + 0.1 * noise
    hits = [int(training._probe_step(features, labels)) for _ in range(30)]
    assert hits[0] < 96
    assert hits[-1] == 96


def test_ncl_is_simclr_with_a_relu(shapes: Path) -> None:
    simclr, ncl = pretraining(shapes, "simclr"), pretraining(shapes, "ncl")
    views = torch.randn(2, 4, 3, 12, 12)
    for training in (simclr, ncl):
        training.encoder.eval()
    assert torch.equal(ncl._forward(views)[1], simclr._forward(views)[1].relu())


def test_zeros_are_those_of_the_last_step(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that do not move: what a training makes of them is another matter."""
    step, shares = Pretraining._step, []

    def spied(self: Pretraining, views_2B3SS: torch.Tensor, labels_B: torch.Tensor) -> Any:
        outputs = step(self, views_2B3SS, labels_B)
        shares.append(float((outputs[1] <= 0).double().mean()))
        return outputs

    monkeypatch.setattr(Pretraining, "_step", spied)
    assert pretraining(shapes, "ncl", learning_rate=0.0).run_epoch().zeros == pytest.approx(shares[-1])
    assert shares[-1] > 0.1
    assert pretraining(shapes, "simclr", learning_rate=0.0).run_epoch().zeros == 0
    assert shares[-1] > 0.1  # negative, and not zero


def test_learning_rate(shapes: Path) -> None:
    training = pretraining(shapes, "simclr", learning_rate=0.4)
    rates = [training.learning_rate(step) for step in range(4 * training.steps_per_epoch)]
    assert training.steps_per_epoch == 3
    assert rates[:3] == pytest.approx([0.4 / 16 / 3 * step for step in (1, 2, 3)])
    assert rates[3] == pytest.approx(0.4 / 16)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.05 * rates[3]


def test_an_epoch_sees_each_image_once(shapes: Path) -> None:
    training = pretraining(shapes, "simclr")
    first = torch.cat(list(training._batches()))
    assert sorted(first.tolist()) == list(range(48))
    training.epoch = 1
    assert not torch.equal(first, torch.cat(list(training._batches())))


def test_views_differ_between_views_steps_and_epochs(shapes: Path) -> None:
    training = pretraining(shapes, "simclr")
    pixels = training.images.pixels_N3SS[:4]
    one, two = training._views(pixels, 0)
    later = training._views(pixels, 1)[0]
    training.epoch = 1
    drawn = [one, two, later, training._views(pixels, 0)[0]]
    assert len({views.sum().item() for views in drawn}) == 4


def test_a_loss_that_is_not_finite_names_its_step(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(module, "nt_xent", lambda z, temperature: z.sum() * 0 + next(losses))
    with pytest.raises(RunError, match=r"not finite at epoch 1, step 3 of 3\. .* --learning-rate"):
        pretraining(shapes, "simclr").run_epoch()
