"""One finetuning run against a loop of its formulas, and CE against NCE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from monolora.errors import RunError
from monolora.recipes.experiment_steps import generator_of
from monolora.recipes.vision import finetune
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.features import Encoder
from monolora.recipes.vision.finetune import (
    CROP_MIN,
    SQUARED_LENGTH,
    Classifier,
    Curves,
    Training,
    even_batches,
    with_common_lengths,
)
from monolora.recipes.vision.images import ImageData, Images
from monolora.recipes.vision.settings import Finetune

ALL = torch.arange(48)


@pytest.fixture
def encoder(make_encoder: Callable[..., Encoder], data: ImageData) -> Encoder:
    """Untrained, frozen, its outputs at the length that finetuning starts from."""
    return with_common_lengths(make_encoder("simclr", projector_out=64).requires_grad_(False), data.train)


@pytest.fixture
def start(encoder: Encoder, data: ImageData) -> Callable[..., Training]:
    """``start(non_negative=False, dtype=torch.float32, epochs=2, …)``: a run that has not begun."""

    def make(non_negative: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> Training:
        network = Classifier(encoder, 3, non_negative, generator_of([0, 1]))
        chosen = Finetune(**{"epochs": 2, "batch_size": 16} | settings)
        return Training(network, data, chosen, dtype, generator_of([0, 2]))

    return make


def _normalised(pixels_B3SS: torch.Tensor, data: ImageData) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.train.mean, data.train.std))
    return (pixels_B3SS / 255 - mean) / std


def test_ce_and_nce_are_one_relu_apart(encoder: Encoder, data: ImageData) -> None:
    images = _normalised(data.val.pixels_N3SS, data)
    ce, nce = (Classifier(encoder, 3, non_negative, generator_of([5])).eval() for non_negative in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(ce.parameters(), nce.parameters(), strict=True))
    with torch.no_grad():
        z_ND = encoder(images)[1]
        assert (z_ND < 0).any()
        assert (z_ND > 0).any()
        weight, bias = ce.linear.weight, ce.linear.bias
        torch.testing.assert_close(ce(images), z_ND @ weight.T + bias)
        torch.testing.assert_close(nce(images), z_ND.clamp(min=0) @ weight.T + bias)


def test_the_classifier_starts_as_torch_starts_it(encoder: Encoder) -> None:
    linear = Classifier(encoder, 1000, False, generator_of([0])).linear
    bound = 1 / math.sqrt(64)
    for parameter in (linear.weight.detach(), linear.bias.detach()):
        assert parameter.abs().max() <= bound
        assert parameter.mean().abs() < 0.03
        assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform distribution


def test_the_encoder_is_copied_and_all_of_the_copy_trains(encoder: Encoder, start: Callable[..., Training]) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    training = start()
    first = {name: value.detach().clone() for name, value in training.network.named_parameters()}
    training.run(ALL, training.data.train.labels_N)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training
    for name, value in training.network.named_parameters():
        assert not torch.equal(value, first[name]), name


def test_common_lengths(make_encoder: Callable[..., Encoder], data: ImageData) -> None:
    """Both layers at the same length, and all representations the old ones times one number."""
    encoder = make_encoder("simclr")
    images = _normalised(data.train.pixels_N3SS, data)
    scaled = with_common_lengths(encoder, data.train)
    with torch.no_grad():
        (backbone, z_ND), (same, scaled_ND) = encoder(images), scaled(images)
        hidden = scaled.projector[:2](backbone)
    torch.testing.assert_close(same, backbone)
    assert hidden.square().sum(1).mean() == pytest.approx(SQUARED_LENGTH, rel=1e-4)
    assert scaled_ND.square().sum(1).mean() == pytest.approx(SQUARED_LENGTH, rel=1e-4)
    factor = scaled_ND.norm() / z_ND.norm()
    torch.testing.assert_close(scaled_ND, z_ND * factor, rtol=1e-4, atol=1e-4)
    again = with_common_lengths(make_encoder("simclr", projector_hidden=7), data.train)  # ReLU or not, any width
    with torch.no_grad():
        assert again(images)[1].square().sum(1).mean() == pytest.approx(SQUARED_LENGTH, rel=1e-4)


def test_lengths_are_measured_on_images_of_all_classes(
    encoder: Encoder, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "_LENGTH_IMAGES", 6)
    seen: list[int] = []

    class Spied:
        labels_N = data.train.labels_N

        def batches(self, parts: tuple[torch.Tensor, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            seen.extend(data.train.labels_N[torch.cat(list(parts))].tolist())
            return data.train.batches(parts)

    with_common_lengths(encoder, Spied())  # type: ignore[arg-type]
    assert len(seen) == 6
    assert set(seen) == {0, 1, 2}


@given(st.integers(2, 300), st.integers(2, 300))
def test_batches(count: int, batch_size: int) -> None:
    indices = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    parts = even_batches(indices, batch_size)
    sizes = [len(part) for part in parts]
    assert torch.equal(torch.cat(parts), indices)
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)
    assert max(sizes) - min(sizes) <= 1
    if batch_size > 2:
        assert len(parts) == math.ceil(count / batch_size)


def _by_hand(training: Training, indices_N: torch.Tensor, labels_N: torch.Tensor, generator: torch.Generator) -> Curves:
    """SGD with momentum 0.9 and a cosine, written out, on the network of ``training``, which is in float64."""
    network, settings, data = training.network, training.settings, training.data
    parameters = list(network.parameters())
    speeds = [torch.zeros_like(parameter) for parameter in parameters]
    steps, step = math.ceil(len(indices_N) / settings.batch_size), 0
    curves = Curves([], [], [])
    for _ in range(settings.epochs):
        network.train()
        order_N = indices_N[torch.randperm(len(indices_N), generator=generator)]
        total = right = 0.0
        for indices_B in order_N.tensor_split(steps):
            images = Augment(size=12, crop_min=CROP_MIN)(data.train.pixels_N3SS[indices_B], generator).double()
            logits_BC = network(_normalised(images * 255, data).contiguous(memory_format=torch.channels_last)).float()
            labels_B = labels_N[indices_B]
            loss = -logits_BC.log_softmax(-1)[torch.arange(len(labels_B)), labels_B].mean()
            gradients = torch.autograd.grad(loss, parameters)
            rate = settings.learning_rate * (1 + math.cos(math.pi * step / (steps * settings.epochs))) / 2
            with torch.no_grad():
                for parameter, speed, gradient in zip(parameters, speeds, gradients, strict=True):
                    speed.mul_(0.9).add_(gradient + settings.weight_decay * parameter)
                    parameter.sub_(rate * speed)
            total += loss.item() * len(labels_B)
            right += int((logits_BC.argmax(-1) == labels_B).sum())
            step += 1
        network.eval()
        with torch.no_grad():
            predicted_N = network(_normalised(data.val.pixels_N3SS, data).double()).argmax(-1)
        curves.train_loss.append(total / len(indices_N))
        curves.train_accuracy.append(right / len(indices_N))
        curves.val_accuracy.append(float((predicted_N == data.val.labels_N).double().mean()))
    return curves


@pytest.mark.parametrize("non_negative", [False, True], ids=["ce", "nce"])
@pytest.mark.parametrize(
    ("indices_N", "batch_size"),
    [(ALL, 8), (torch.arange(1, 48, 2)[:19], 8), (ALL, 256)],
    ids=["all", "uneven", "more asked for than there are"],
)
def test_a_run_is_its_formulas(
    start: Callable[..., Training], non_negative: bool, indices_N: torch.Tensor, batch_size: int
) -> None:
    """In float64: training makes a thousand times of what rounding adds."""
    settings = {"epochs": 3, "batch_size": batch_size, "learning_rate": 0.01, "weight_decay": 0.1}
    fast, slow = (start(non_negative, **settings) for _ in range(2))
    for training in (fast, slow):
        training.network.double()
    labels_N = (fast.data.train.labels_N + (torch.arange(48) % 5 == 0)) % 3
    curves = fast.run(indices_N, labels_N)
    expected = _by_hand(slow, indices_N, labels_N, generator_of([0, 2]))
    for name, value in fast.network.state_dict().items():
        torch.testing.assert_close(value, slow.network.state_dict()[name], rtol=1e-6, atol=1e-8, msg=name)
    assert curves.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    assert curves.train_accuracy == expected.train_accuracy
    assert curves.val_accuracy == expected.val_accuracy


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The images and labels of every training step."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward, loss = Classifier.forward, F.cross_entropy

    def spied_forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append((images, torch.empty(0)))
        return forward(self, images)

    def spied_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen[-1] = (seen[-1][0], labels)
        return loss(logits, labels)

    monkeypatch.setattr(Classifier, "forward", spied_forward)
    monkeypatch.setattr(F, "cross_entropy", spied_loss)
    return seen


def test_ce_and_nce_see_the_same(
    start: Callable[..., Training], trained_on: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    for non_negative in (False, True):
        training = start(non_negative)
        training.run(ALL, training.data.train.labels_N)
    ce, nce = trained_on[:6], trained_on[6:]
    assert len(nce) == 6
    for (images, labels), (others, same) in zip(ce, nce, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)
    assert not torch.equal(ce[0][0], ce[3][0])  # every epoch is another


def test_each_epoch_has_every_chosen_image_once(
    start: Callable[..., Training], trained_on: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Labels that number the images tell which came; the network has as many classes here."""
    training = start(epochs=3, batch_size=5)
    training.network.linear = torch.nn.Linear(64, 48)
    indices_N = torch.tensor([3, 4, 10, 20, 21, 30, 40, 41, 42, 43, 47])
    training.run(indices_N, torch.arange(48))
    sizes = [len(labels) for _, labels in trained_on]
    assert sizes == [4, 4, 3] * 3
    orders = [torch.cat([labels for _, labels in trained_on[3 * i : 3 * i + 3]]).tolist() for i in range(3)]
    assert all(sorted(order) == indices_N.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def _of_colours(images: Images, colours_N3: torch.Tensor) -> Images:
    """The same labels, each image of one colour."""
    return images._replace(pixels_N3SS=colours_N3.view(-1, 3, 1, 1).expand(-1, 3, 12, 12).contiguous())


def test_images_are_changed_by_crops_and_flips_alone(
    start: Callable[..., Training], data: ImageData, trained_on: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Images of one colour stay what they are: nothing plays with colours, and nothing is padded."""
    colours = torch.randint(0, 256, (48, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    training = start(epochs=1)
    training.data = data._replace(train=_of_colours(data.train, colours))
    training.network.linear = torch.nn.Linear(64, 48)
    training.run(ALL, torch.arange(48))
    for images, indices in trained_on:
        expected = _normalised(colours[indices].expand(-1, 3, 12, 12), data)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_more_images_asked_for_than_there_are(
    start: Callable[..., Training], trained_on: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """A batch size above the number of images: one step an epoch."""
    training = start(epochs=3, batch_size=256)
    training.run(ALL, training.data.train.labels_N)
    assert [len(labels) for _, labels in trained_on] == [48] * 3


@pytest.mark.parametrize("non_negative", [False, True], ids=["ce", "nce"])
def test_it_learns_the_labels_that_it_is_given(
    start: Callable[..., Training], data: ImageData, non_negative: bool
) -> None:
    """All labels wrong in one way: right by those, wrong by the validation images'.

    What is learned is convex: images that crops do not change, all in one batch, before a frozen encoder.
    """
    training = start(non_negative, epochs=40, batch_size=48, learning_rate=0.02)
    training.network.encoder.requires_grad_(False)
    colours_C3 = torch.tensor([[30, 60, 220], [40, 200, 90], [230, 50, 20]], dtype=torch.uint8)
    training.data = ImageData(*(_of_colours(split, colours_C3[split.labels_N]) for split in data))
    curves = training.run(ALL, (data.train.labels_N + 1) % 3)
    assert [len(curve) for curve in curves] == [40, 40, 40]
    assert curves.train_loss == sorted(curves.train_loss, reverse=True)
    assert curves.train_accuracy[-1] == 1
    assert curves.val_accuracy[-1] == 0


def test_a_run_is_the_same_again(start: Callable[..., Training]) -> None:
    """Whatever the global random numbers, which stay as they are."""
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            training = start()
            curves = training.run(ALL, training.data.train.labels_N)
            assert torch.equal(torch.get_rng_state(), state)
        results.append((curves, training.network.state_dict()))
    (first, weights), (second, same) = results
    assert first == second
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_bfloat16_is_near_float32(start: Callable[..., Training]) -> None:
    """Over two steps, before a training is another one."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        training = start(dtype=dtype, epochs=2, batch_size=48, learning_rate=0.01)
        losses.append(training.run(ALL, training.data.train.labels_N).train_loss)
        assert all(parameter.dtype == torch.float32 for parameter in training.network.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_loss_that_is_not_finite_ends_the_run(
    start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = Classifier.forward, []

    def broken(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            steps.append(0)
        return forward(self, images) * (math.nan if len(steps) == 5 else 1)

    monkeypatch.setattr(Classifier, "forward", broken)
    training = start(epochs=4)
    with pytest.raises(RunError, match=r"not finite at step 2 of epoch 2\. Lower --learning-rate"):
        training.run(ALL, training.data.train.labels_N)
    assert len(steps) == 6


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4))
def test_generators_depend_on_all_numbers(seed: list[int]) -> None:
    def drawn(seed: list[int]) -> list[int]:
        return torch.randint(2**62, (4,), generator=generator_of(seed)).tolist()

    assert drawn(seed) == drawn(seed)
    for index, value in enumerate(seed):
        assert drawn([*seed[:index], value ^ 1, *seed[index + 1 :]]) != drawn(seed)
