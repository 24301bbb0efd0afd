"""The top-k sparse autoencoder (equation 2; Gao et al., 2024): model, file and training.

    z = top_k(relu(W_enc (x - b_pre) + b_enc)),   x' = W_dec z + b_pre

Shapes: B features of a batch, N of a data set, D their dimensions, L latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from monolora.errors import InputError, RunError, in_one_line
from monolora.files import write_tensors
from monolora.recipes.vision.settings import Sae

WEIGHTS = "sae.safetensors"
_CHUNK = 4096  # features at a time, without gradients


class TopKAutoencoder(nn.Module):
    """Features to sparse latents and back.

    Inputs are scaled by one number, the same in training and use, that gives the training features a mean squared
    deviation of 1: learning rates then mean the same for every encoder. Latents are of the scaled features.

    Args:
        dim: D.
        latents: L.
        k: latents that stay nonzero for each feature; ReLU comes first, so it may be fewer.
        generator: of the first weights, on the CPU (default: one with a constant seed).
    """

    scale: torch.Tensor
    k: torch.Tensor

    def __init__(self, dim: int, latents: int, k: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("k", torch.tensor(k))
        self.n_active = k  # as a number: reading the buffer would wait for the device
        self.pre_bias = nn.Parameter(torch.zeros(dim))
        # skip_init: PyTorch's global generator is left alone
        self.encoder: nn.Linear = nn.utils.skip_init(nn.Linear, dim, latents)
        self.decoder: nn.Linear = nn.utils.skip_init(nn.Linear, latents, dim, bias=False)
        with torch.no_grad():  # as usual: columns of norm 1, the encoder their transpose
            self.decoder.weight.normal_(generator=generator or torch.Generator())
            self.decoder.weight.div_(self.decoder.weight.norm(dim=0))
            self.encoder.weight.copy_(self.decoder.weight.T)
            self.encoder.bias.zero_()

    def fit_inputs(self, mean_D: torch.Tensor, variance: torch.Tensor) -> None:
        """Set the input scale, and the bias to the mean of what is scaled.

        Args:
            mean_D: of the unscaled training features.
            variance: the mean, over all entries, of their squared deviation from it.
        """
        with torch.no_grad():
            self.scale.copy_(variance.rsqrt())
            self.pre_bias.copy_(mean_D * self.scale)

    def scaled(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The target of :meth:`decode` for unscaled features, shape ``(B, D)``."""
        return x_BD * self.scale

    def before_top_k(self, x_BD: torch.Tensor) -> torch.Tensor:
        """``relu(W_enc (x - b_pre) + b_enc)`` for unscaled features, shape ``(B, L)``."""
        activations_BL: torch.Tensor = self.encoder(self.scaled(x_BD) - self.pre_bias)
        return activations_BL.relu()

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Latents of unscaled features, shape ``(B, L)``, at most k above zero in each row."""
        return self.top_k(self.before_top_k(x_BD))

    def top_k(self, a_BL: torch.Tensor) -> torch.Tensor:
        """The k largest of each row, zeros elsewhere."""
        return largest(a_BL, self.n_active)

    def decode(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Scaled features, shape ``(B, D)``."""
        x_BD: torch.Tensor = self.decoder(z_BL) + self.pre_bias
        return x_BD


def largest(a_BL: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, zeros elsewhere; exactly k, even where some are equal."""
    values, indices = a_BL.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(a_BL).scatter(-1, indices, values)


def save_sae(sae: TopKAutoencoder, folder: Path) -> None:
    """Write the weights; :func:`load_sae` reads them.

    Raises:
        OSError: if the disk does not take them; SafetensorError likewise.
    """
    write_tensors(folder / WEIGHTS, sae.state_dict())


def load_sae(folder: Path, device: torch.device) -> TopKAutoencoder:
    """The autoencoder in ``folder``, in evaluation mode, frozen.

    Raises:
        InputError: if there is none, or its file is damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no autoencoder. Train it first: monolora vision sae.")
    try:
        tensors = load_file(folder / WEIGHTS)
        latents, dim = tensors["encoder.weight"].shape
        sae = TopKAutoencoder(dim, latents, int(tensors["k"]))
        sae.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"Cannot load the autoencoder in {folder}: {in_one_line(error)} Train it again.") from error
    return sae.to(device).eval().requires_grad_(False)


# Training.


class TrainingResult(NamedTuple):
    """A trained autoencoder.

    Attributes:
        sae: on the device of its training features.
        loss: mean squared error of the scaled features, for each epoch.
    """

    sae: TopKAutoencoder
    loss: tuple[float, ...]


class Quality(NamedTuple):
    """How well an autoencoder represents a split.

    Attributes:
        explained_variance: 1 - squared errors / squared deviations from the split's mean.
        dead: share of latents that are zero on all images.
        zeros: share of latents that are zero on an image, mean over images.
    """

    explained_variance: float
    dead: float
    zeros: float


def train_sae(x_ND: torch.Tensor, settings: Sae, seed: int) -> TrainingResult:
    """Train an autoencoder on the features' device.

    Args:
        x_ND: ``float32``, unscaled features.
        settings: of the step.
        seed: of the first weights and the order.

    Raises:
        InputError: if k is larger than the number of latents, or the features have no finite spread.
        RunError: if the loss is not finite, naming the step.
    """
    generator = torch.Generator().manual_seed(seed)
    sae = _initial(x_ND, settings, generator)
    trainer = _Trainer(sae, settings)
    losses: list[float] = []
    for _ in range(settings.epochs):
        parts = torch.randperm(len(x_ND), generator=generator).to(x_ND.device).split(settings.batch_size)
        loss_S = torch.stack([trainer.step(x_ND[indices_B]) for indices_B in parts])
        if not loss_S.isfinite().all():
            first = int((~loss_S.isfinite()).nonzero()[0])
            raise _diverged(len(losses) * len(parts) + first + 1, settings)
        sizes_S = torch.tensor([len(indices_B) for indices_B in parts], device=x_ND.device)
        losses.append(float((loss_S * sizes_S).sum() / len(x_ND)))
    # The last loss was measured before the last update, which may have diverged.
    if not all(parameter.isfinite().all() for parameter in sae.parameters()):
        raise _diverged(settings.epochs * len(parts), settings)
    return TrainingResult(sae.eval().requires_grad_(False), tuple(losses))


def quality_of(sae: TopKAutoencoder, x_ND: torch.Tensor) -> Quality:
    """Measure an autoencoder on a split's features, on their device."""
    _, deviation = _spread(x_ND)
    error, zeros = 0.0, 0
    active_L = torch.zeros(sae.encoder.out_features, dtype=torch.bool, device=x_ND.device)
    with torch.inference_mode():
        for x_BD in x_ND.split(_CHUNK):
            z_BL = sae.encode(x_BD)
            error += float((sae.decode(z_BL) / sae.scale - x_BD).double().square().sum())
            zeros += int((z_BL == 0).sum())
            active_L |= (z_BL > 0).any(0)
    return Quality(
        explained_variance=1 - error / float(deviation) if deviation > 0 else float("nan"),
        dead=1 - float(active_L.double().mean()),
        zeros=zeros / (len(x_ND) * len(active_L)),
    )


class _Trainer:
    """The state between steps: the optimizer, and the number of images for which each latent has been zero."""

    def __init__(self, sae: TopKAutoencoder, settings: Sae) -> None:
        self.sae = sae
        self.settings = settings
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=settings.learning_rate, fused=True)
        self.idle_L = torch.zeros(sae.encoder.out_features, dtype=torch.int64, device=sae.pre_bias.device)

    def step(self, x_BD: torch.Tensor) -> torch.Tensor:
        """One update; returns the mean squared error before it, without the auxiliary loss."""
        a_BL = self.sae.before_top_k(x_BD)
        z_BL = self.sae.top_k(a_BL)
        error_BD = self.sae.scaled(x_BD) - self.sae.decode(z_BL)
        loss = error_BD.square().mean()
        self.idle_L = torch.where((z_BL > 0).any(0), 0, self.idle_L + len(x_BD))
        total = loss
        if self.settings.auxiliary:
            extra = auxiliary_loss(
                self.sae, a_BL, error_BD, self.idle_L >= self.settings.dead_after, self.settings.auxiliary_k
            )
            # Gao et al. leave it out where it overflows, which can happen while the main loss is fine.
            total = loss + self.settings.auxiliary * extra if extra.isfinite() else loss
        self.optimizer.zero_grad()
        total.backward()
        if self.settings.unit_norm:
            remove_parallel_gradient(self.sae.decoder)
        self.optimizer.step()
        if self.settings.unit_norm:
            with torch.no_grad():
                self.sae.decoder.weight.div_(self.sae.decoder.weight.norm(dim=0))
        return loss.detach()


def auxiliary_loss(
    sae: TopKAutoencoder, a_BL: torch.Tensor, error_BD: torch.Tensor, dead_L: torch.Tensor, k: int
) -> torch.Tensor:
    """The error with which dead latents explain what the living ones leave (Gao et al., 2024, appendix A.2).

    Args:
        sae: the autoencoder.
        a_BL: activations before top-k, after ReLU.
        error_BD: scaled features minus their reconstruction; it gets no gradient.
        dead_L: which latents are dead.
        k: how many of these are used for an image.

    Returns:
        The mean squared error of the error's reconstruction.
    """
    z_BL = largest(a_BL * dead_L, min(k, a_BL.shape[-1]))
    explained_BD: torch.Tensor = sae.decoder(z_BL)
    return (error_BD.detach() - explained_BD).square().mean()


def remove_parallel_gradient(decoder: nn.Linear) -> None:
    """Remove from the gradient what would only change the norms of the weight's columns, which are 1."""
    weight_DL, gradient_DL = decoder.weight.detach(), decoder.weight.grad
    assert gradient_DL is not None
    gradient_DL -= (gradient_DL * weight_DL).sum(0) * weight_DL


def _initial(x_ND: torch.Tensor, settings: Sae, generator: torch.Generator) -> TopKAutoencoder:
    """An untrained autoencoder: random weights, and inputs scaled to the features."""
    latents = settings.latents or x_ND.shape[1]
    if settings.k > latents:
        raise InputError(
            f"--k {settings.k} is more than the autoencoder's {latents} latents. Lower --k, or raise --latents."
        )
    mean_D, deviation = _spread(x_ND)
    if not deviation.isfinite():
        raise InputError(
            "Some features are not finite: the encoder is broken. Pretrain again: monolora vision pretrain."
        )
    if deviation == 0:
        raise InputError(
            "The features of all images are the same: the encoder has collapsed. Pretrain again, with a lower "
            "--learning-rate."
        )
    sae = TopKAutoencoder(x_ND.shape[1], latents, settings.k, generator).to(x_ND.device)
    sae.fit_inputs(mean_D, deviation / x_ND.numel())
    return sae


def _spread(x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``float64``: the mean, shape ``(D,)``, and the sum of squared deviations from it."""
    mean_D = x_ND.mean(0, dtype=torch.float64)
    return mean_D, torch.stack([(x_BD - mean_D).square().sum() for x_BD in x_ND.split(_CHUNK)]).sum()


def _diverged(step: int, settings: Sae) -> RunError:
    return RunError(
        f"The autoencoder's loss is not finite at step {step}; it is not saved. Lower --learning-rate, which is "
        f"{settings.learning_rate:g}."
    )
