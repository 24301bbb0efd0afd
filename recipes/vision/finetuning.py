"""One finetuning run: all weights of a pretrained encoder and a new classifier, with CE or NCE (section 3.2.1).

CE is the cross entropy of ``Linear(f(x))``, NCE that of ``Linear(relu(f(x)))``: the same code, one ReLU apart. f(x) is
the projector's output. The backbone's own output would not do: its last operations are a ReLU and a mean, so it is
non-negative already, and NCE's ReLU would change nothing.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from monolora.errors import RunError
from monolora.recipes.experiment_steps import autocast
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.encoder import Encoder
from monolora.recipes.vision.images import ImageData, Images
from monolora.recipes.vision.settings import Finetune

# Smallest share of an image's area that a crop takes. Supervised training of large networks on ImageNet takes 0.08;
# few images of 32 pixels need larger crops: one of 8 % is 9 pixels a side, too small to recognize a class.
CROP_MIN = 0.2
# Mean squared length of the projector's hidden and last outputs at the start. At 1, a learning rate that suits the
# backbone is too small for the classifier; at thousands, where the paper's 16384 and 2048 units can be, CE destroys at
# once what was pretrained.
SQUARED_LENGTH = 100.0
_MOMENTUM = 0.9
_BATCH = 512  # images at a time, without gradients
_LENGTH_IMAGES = 1024  # training images, spread over all, that lengths are measured on


class Curves(NamedTuple):
    """What a run measures, epoch by epoch.

    Attributes:
        train_accuracy: over the epoch's batches, in the course of training, on the labels trained on.
        val_accuracy: after the epoch, on the validation images and their own labels.
        train_loss: mean over the epoch's images.
    """

    train_accuracy: list[float]
    val_accuracy: list[float]
    train_loss: list[float]


class Classifier(nn.Module):
    """Normalised images to logits.

    Args:
        encoder: it is copied, and the copy is trained.
        classes: C.
        non_negative: NCE's ReLU.
        generator: of the linear layer's first weights, on the CPU.
    """

    def __init__(self, encoder: Encoder, classes: int, non_negative: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.non_negative = non_negative
        dim = encoder.config.projector_out
        self.linear = nn.utils.skip_init(nn.Linear, dim, classes, device=encoder.mean.device)
        with torch.no_grad():  # nn.Linear's own initialization, but from the generator
            for parameter in self.linear.parameters():
                uniform = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * uniform - 1) / dim**0.5)

    def forward(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Logits, shape ``(B, C)``."""
        _, z_BD = self.encoder(images_B3SS)
        return self.linear(z_BD.relu() if self.non_negative else z_BD)


@torch.no_grad()
def with_common_lengths(encoder: Encoder, images: Images) -> Encoder:
    """A copy whose projector has hidden and last outputs with a mean squared length of ``SQUARED_LENGTH``.

    Each of the projector's layers is multiplied by one number. As ReLU is homogeneous, this changes f(x) by one factor
    and nothing else. The contrastive loss depends on directions alone and leaves lengths to chance: without this, a
    learning rate would mean something else for every encoder.

    Args:
        encoder: with or without a ReLU at its end.
        images: of the training, on which lengths are measured.
    """
    scaled = copy.deepcopy(encoder).eval()
    first, relu, last = scaled.projector
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    count = len(images.labels_N)
    indices = torch.linspace(0, count - 1, min(count, _LENGTH_IMAGES)).long().unique()
    squares = []
    for _, pixels_B3SS in images.batches(indices.split(_BATCH)):
        hidden_BH = relu(first(scaled(scaled.normalised(pixels_B3SS))[0]))
        squares.append(torch.stack([hidden_BH.square().sum(1), last(hidden_BH).square().sum(1)]))
    hidden, output = (SQUARED_LENGTH / torch.cat(squares, 1).mean(1)).sqrt()
    first.weight.mul_(hidden)
    first.bias.mul_(hidden)
    last.weight.mul_(output / hidden)
    last.bias.mul_(output)
    return scaled


def even_batches(indices_N: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Split ``indices_N`` into batches as even as possible: all images, and never one image alone.

    A batch norm has no statistics of a single image. Batches are no larger than ``batch_size``, except for 3 images
    where it is 2.
    """
    count = len(indices_N)
    return indices_N.tensor_split(max(1, min(-(-count // batch_size), count // 2)))


class Training:
    """One run.

    Args:
        network: on the device.
        data: both splits.
        settings: of finetuning.
        dtype: the precision of products.
        generator: of the orders and the augmentations, on the CPU.
        compiled: whether to use ``torch.compile`` in training.
    """

    def __init__(
        self,
        network: Classifier,
        data: ImageData,
        settings: Finetune,
        dtype: torch.dtype,
        generator: torch.Generator,
        compiled: bool = False,
    ) -> None:
        self.network, self.data, self.settings, self.dtype = network, data, settings, dtype
        self.forward = torch.compile(network) if compiled else network
        self.generator = generator
        self.augment = Augment(network.encoder.config.image_size, CROP_MIN)
        self.device = data.train.device

    def run(self, indices_N: torch.Tensor, labels_N: torch.Tensor) -> Curves:
        """Train, and classify the validation images after each epoch.

        Args:
            indices_N: of the training images that are used.
            labels_N: of all training images, right or wrong.

        Raises:
            RunError: if the loss is not finite.
        """
        epochs = self.settings.epochs
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            momentum=_MOMENTUM,
            weight_decay=self.settings.weight_decay,
        )
        steps = len(even_batches(indices_N, self.settings.batch_size))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
        curves = Curves([], [], [])
        for epoch in range(1, epochs + 1):
            loss, accuracy = self._epoch(epoch, indices_N, labels_N, optimizer, schedule)
            curves.train_loss.append(loss)
            curves.train_accuracy.append(accuracy)
            curves.val_accuracy.append(self.accuracy(self.data.val))
        return curves

    def _epoch(
        self,
        epoch: int,
        indices_N: torch.Tensor,
        labels_N: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch's batches."""
        self.network.train()
        order_N = indices_N[torch.randperm(len(indices_N), generator=self.generator)]
        parts = even_batches(order_N, self.settings.batch_size)
        losses, correct = [], []
        for indices_B, pixels_B3SS in self.data.train.batches(parts):
            labels_B = labels_N[indices_B].to(self.device, non_blocking=True)
            images_B3SS = self.network.encoder.standardised(self.augment(pixels_B3SS, self.generator))
            with autocast(self.device, self.dtype):
                logits_BC = self.forward(images_B3SS)
            loss = F.cross_entropy(logits_BC.float(), labels_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            correct.append((logits_BC.argmax(-1) == labels_B).sum())
        # Read once an epoch: a number read in every step would make the device wait.
        losses_T = torch.stack(losses).double().cpu()
        divergent = (~losses_T.isfinite()).nonzero()
        if len(divergent):
            raise RunError(
                f"the loss is not finite at step {int(divergent[0]) + 1} of epoch {epoch}. Lower --learning-rate."
            )
        sizes_T = torch.tensor([len(part) for part in parts], dtype=torch.float64)
        loss_mean = float(losses_T @ sizes_T / sizes_T.sum())
        return loss_mean, int(torch.stack(correct).sum()) / len(indices_N)

    @torch.inference_mode()
    def accuracy(self, images: Images) -> float:
        """The accuracy on a split's images and their own labels, in evaluation mode."""
        self.network.eval()
        parts = torch.arange(len(images.labels_N)).split(_BATCH)
        correct = []
        for indices_B, pixels_B3SS in images.batches(parts):
            with autocast(self.device, self.dtype):
                logits_BC = self.network(self.network.encoder.normalised(pixels_B3SS))
            correct.append((logits_BC.argmax(-1) == images.labels_N[indices_B].to(self.device)).sum())
        return int(torch.stack(correct).sum()) / len(images.labels_N)
