"""One encoder's contrastive pretraining: epochs, checkpoints that resume bit for bit, NT-Xent, and LARS with clipping.

All random numbers come from generators seeded by the seed and the position in the run (epoch, step, process), so a
checkpoint needs no random state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pytorch_optimizer import LARS
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather

from monolora.errors import RunError
from monolora.recipes.experiment_steps import autocast, generator_of
from monolora.recipes.vision.augment import Augment
from monolora.recipes.vision.features import Encoder
from monolora.recipes.vision.images import Images
from monolora.recipes.vision.settings import Pretrain

_CHECK_EVERY = 50  # steps between checks of the losses; each check waits for the device
_PROBE_LEARNING_RATE = 0.1


class Epoch(NamedTuple):
    """The metrics of an epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean over its steps.
        probe_accuracy: of the online classifier, on the views that it is trained on, in the course of training.
        zeros: share of zeros in the representations of the last step.
        learning_rate: at its end.
        images_per_second: of all processes together.
    """

    epoch: int
    loss: float
    probe_accuracy: float
    zeros: float
    learning_rate: float
    images_per_second: float


class Pretraining:
    """An encoder, its optimizer, and an online classifier that gives it no gradient.

    Args:
        settings: of pretraining.
        encoder: with its first weights; moved to the images' device.
        images: to train on; the labels are for the online classifier alone.
        seed: of all random numbers.
        accelerator: of the processes, of which there may be one.
        dtype: of the products.
        compiled: whether to compile the encoder.
    """

    def __init__(
        self,
        settings: Pretrain,
        encoder: Encoder,
        images: Images,
        *,
        seed: int,
        accelerator: Accelerator,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        self.settings, self.images, self.seed, self.dtype = settings, images, seed, dtype
        self.accelerator, self.device = accelerator, images.device
        self.encoder = encoder.to(self.device)
        self.encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        network: nn.Module = self.encoder
        if accelerator.num_processes > 1:
            if self.device.type == "cuda":  # batch statistics over all processes, as of one batch
                network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = nn.parallel.DistributedDataParallel(network)
        self.network = torch.compile(network) if compiled else network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.probe = nn.Linear(encoder.backbone_dim, len(images.classes)).to(self.device)
        self.optimizer = ClippedLars(
            self.encoder.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            trust=settings.trust,
        )
        self.probe_optimizer = torch.optim.SGD(self.probe.parameters(), lr=_PROBE_LEARNING_RATE, momentum=0.9)
        self.augment = Augment(
            encoder.config.image_size,
            settings.crop_min,
            jitter=settings.jitter,
            jitter_probability=settings.jitter_probability,
            grey_probability=settings.grey_probability,
            blur_probability=settings.blur_probability,
        )
        self.epoch = 0
        self._labels = images.labels_N.to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches the images fill."""
        return len(self.images.labels_N) // self.settings.batch_size

    def run_epoch(self) -> Epoch:
        """Train for one epoch.

        Raises:
            RunError: if a loss is not finite, naming the step.
        """
        start = time.perf_counter()
        self.encoder.train()
        losses: list[torch.Tensor] = []
        correct = torch.zeros((), device=self.device)
        zeros = torch.zeros((), device=self.device)
        for number, (indices_B, pixels_B3SS) in enumerate(self.images.batches(self._batches())):
            step = self.epoch * self.steps_per_epoch + number
            self.optimizer.set_lr(self.learning_rate(step))
            views_2B3SS = self._views(pixels_B3SS, number)
            loss, z_2BD, hits = self._step(views_2B3SS, self._labels[indices_B.to(self.device)])
            losses.append(loss)
            correct += hits
            zeros = (z_2BD == 0).float().mean()
            if number % _CHECK_EVERY == 0:
                self._check(losses)
        self._check(losses)
        self.epoch += 1
        seconds = time.perf_counter() - start
        images = self.steps_per_epoch * self.settings.batch_size
        views = 2 * images / self.accelerator.num_processes
        return Epoch(
            epoch=self.epoch,
            loss=torch.stack(losses).mean().item(),
            probe_accuracy=(self.accelerator.reduce(correct, "mean") / views).item(),
            zeros=zeros.item(),
            learning_rate=self.learning_rate(self.epoch * self.steps_per_epoch - 1),
            images_per_second=images / seconds,
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up to ``learning_rate * batch_size / 256``, then a cosine to 0."""
        peak = self.settings.learning_rate * self.settings.batch_size / 256
        warmup = self.settings.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return peak * (step + 1) / warmup
        total = self.settings.epochs * self.steps_per_epoch
        return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    def state(self) -> dict[str, Any]:
        """All that :meth:`load_state` needs to resume."""
        return {
            "epoch": self.epoch,
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "probe": self.probe.state_dict(),
            "probe_optimizer": self.probe_optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state`."""
        self.epoch = state["epoch"]
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.probe.load_state_dict(state["probe"])
        self.probe_optimizer.load_state_dict(state["probe_optimizer"])

    def _generator(self, *position: int) -> torch.Generator:
        """The generator of a position within the epoch."""
        return generator_of([self.seed, self.epoch, *position])

    def _batches(self) -> Iterator[torch.Tensor]:
        """This process's images of each step, in the epoch's order."""
        order_N = torch.randperm(len(self.images.labels_N), generator=self._generator())
        for batch in order_N.split(self.settings.batch_size)[: self.steps_per_epoch]:
            yield batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def _views(self, pixels_B3SS: torch.Tensor, number: int) -> torch.Tensor:
        """Two augmented views of each image, ``(2, B, 3, S, S)``."""
        generator = self._generator(number, self.accelerator.process_index)
        views = [self.encoder.standardised(self.augment(pixels_B3SS, generator)) for _ in range(2)]
        return torch.stack(views)

    def _step(
        self, views_2B3SS: torch.Tensor, labels_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step of encoder and online classifier; returns loss, representations and the classifier's hits."""
        parts = views_2B3SS.chunk(self.settings.accumulation, dim=1)
        if len(parts) == 1:
            backbone_2BF, z_2BD = self._forward(parts[0])
            loss = self._loss(z_2BD)
            loss.backward()
        else:
            loss, backbone_2BF, z_2BD = self._backward_in_parts(parts)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), z_2BD.detach(), self._probe_step(backbone_2BF.detach(), labels_B)

    def _forward(self, views_2B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Backbone output and representation of both views, each ``(2, B, …)``, in one pass."""
        with autocast(self.device, self.dtype):
            outputs = self.network(views_2B3SS.flatten(0, 1))
        backbone_2BF, z_2BD = (output.float().unflatten(0, views_2B3SS.shape[:2]) for output in outputs)
        return backbone_2BF, z_2BD

    def _loss(self, z_2BD: torch.Tensor) -> torch.Tensor:
        return nt_xent(of_all_processes(z_2BD), self.settings.temperature)

    def _backward_in_parts(self, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradient of the whole batch's loss, with the activations of one part at a time in memory.

        First all representations without gradients, then the gradient of the loss for them, then each part again with
        its share of that gradient (GradCache; Gao et al., 2021). All images of the batch stay negatives of each other;
        only batch norms see one part at a time.
        """
        with torch.no_grad():
            backbones, representations = zip(*(self._forward(part) for part in parts), strict=True)
        backbone_2BF = torch.cat(backbones, dim=1)
        z_2BD = torch.cat(representations, dim=1).requires_grad_()
        loss = self._loss(z_2BD)
        loss.backward()
        assert z_2BD.grad is not None
        for part, gradient in zip(parts, z_2BD.grad.split([part.shape[1] for part in parts], dim=1), strict=True):
            self._forward(part)[1].backward(gradient)
        return loss, backbone_2BF, z_2BD

    def _probe_step(self, backbone_2BF: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        """Train the online classifier on detached features; returns how many of the views it got right."""
        logits = self.probe(backbone_2BF.flatten(0, 1))
        labels = labels_B.repeat(2)
        F.cross_entropy(logits, labels).backward()
        self.probe_optimizer.step()
        self.probe_optimizer.zero_grad()
        return (logits.argmax(-1) == labels).sum()

    def _check(self, losses: list[torch.Tensor]) -> None:
        finite = torch.stack(losses).isfinite()
        if not finite.all():
            step = int((~finite).nonzero()[0]) + 1
            raise RunError(
                f"The loss is not finite at epoch {self.epoch + 1}, step {step} of {self.steps_per_epoch}. What was "
                "saved before is intact. Lower --learning-rate or raise --warmup-epochs, in another --out."
            )


def nt_xent(z_2BD: torch.Tensor, temperature: float) -> torch.Tensor:
    """The normalised, temperature-scaled cross entropy (Chen et al., 2020, equation 1), a scalar.

    For each view, the other view of its image is the positive and all other views are negatives.

    Args:
        z_2BD: the unnormalised representations of the two views, shape ``(2, B, D)``, B at least 2; for NCL
            non-negative.
        temperature: that cosine similarities are divided by.
    """
    views, batch, _ = z_2BD.shape
    z_ND = F.normalize(z_2BD.flatten(0, 1), dim=-1)
    similar_NN = z_ND @ z_ND.T / temperature
    similar_NN = similar_NN.masked_fill(torch.eye(views * batch, dtype=torch.bool, device=z_ND.device), -torch.inf)
    partners_N = torch.arange(views * batch, device=z_ND.device).roll(batch)
    return F.cross_entropy(similar_NN, partners_N)


def of_all_processes(z_2BD: torch.Tensor) -> torch.Tensor:
    """Gather the representations of all processes' images, ``(2, B of all, D)``, with their gradients.

    Every process computes the loss over all of them. Then the average of the processes' gradients, with which they
    step, is the gradient that one process with all images would have.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return z_2BD
    return torch.cat(all_gather(z_2BD.contiguous()), dim=1)


class ClippedLars(LARS):
    """LARS with the clipping of the authors' code: SGD whose step for a weight is at most ``trust`` of its norm.

    The learning rate of a weight is ``min(trust * |w| / (|g| + decay * |w|), lr)``: that of plain SGD until a
    step would be too large for its weight. Biases and norms (one dimension) step as in plain SGD, without decay.

    Args:
        parameters: of which those with ``requires_grad`` are trained.
        lr: the largest learning rate of any weight.
        momentum, weight_decay: as in SGD.
        trust: LARS's trust coefficient, eta.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._weights = [parameter for parameter in trained if parameter.ndim > 1]
        self._trust, self._decay = trust, weight_decay
        # One group for each weight, as each has its own trust coefficient.
        groups = [{"params": [parameter for parameter in trained if parameter.ndim <= 1]}]
        groups += [{"params": [weight]} for weight in self._weights]
        super().__init__(
            [group for group in groups if group["params"]], lr=lr, momentum=momentum, weight_decay=weight_decay
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the following steps."""
        for group in self.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; parameters without a gradient do not change."""
        self._bound_trust()
        return super().step(closure)

    def _bound_trust(self) -> None:
        """Set the coefficient c that makes LARS's ``lr * c * |w| / (|g| + decay * |w|)`` the bounded learning rate."""
        by_weight = {id(group["params"][0]): group for group in self.param_groups}
        weights = [weight for weight in self._weights if weight.grad is not None]
        if not weights:
            return
        norms = torch.stack(torch._foreach_norm(tuple(weights)))
        gradients = torch.stack(
            torch._foreach_norm(tuple(weight.grad for weight in weights if weight.grad is not None))
        )
        limit = self._trust / max(self.param_groups[0]["lr"], 1e-12)
        coefficients = ((gradients + self._decay * norms) / norms).clamp(max=limit)
        for weight, coefficient in zip(weights, coefficients.unbind(), strict=True):
            by_weight[id(weight)]["trust_coefficient"] = coefficient
