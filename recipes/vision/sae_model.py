"""The top-k sparse autoencoder (paper, equation 2; Gao et al., 2024).

    z = top_k(relu(W_enc (x - b_pre) + b_enc)),   x' = W_dec z + b_pre

Shapes: B features of a batch, D their dimensions, L latents.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from monolora.errors import InputError, in_one_line
from monolora.runs import write_aside

WEIGHTS = "sae.safetensors"


class TopKAutoencoder(nn.Module):
    """Features to sparse latents and back.

    Inputs are scaled by one number, the same in training and use, which gives the training features a mean squared
    deviation of 1: learning rates then mean the same for every encoder. Latents are of the scaled features.

    Args:
        dim: D.
        latents: L.
        k: latents kept of each feature; ReLU comes before, so fewer may be above zero.
        generator: of the first weights, on the CPU (default: one that always gives the same).
    """

    scale: torch.Tensor
    k: torch.Tensor

    def __init__(self, dim: int, latents: int, k: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("k", torch.tensor(k))
        self.kept = k
        self.pre_bias = nn.Parameter(torch.zeros(dim))
        # skip_init: nothing is drawn from torch's global generator
        self.encoder: nn.Linear = nn.utils.skip_init(nn.Linear, dim, latents)
        self.decoder: nn.Linear = nn.utils.skip_init(nn.Linear, latents, dim, bias=False)
        with torch.no_grad():  # the usual start: columns of norm 1, the encoder their transpose
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
        """What :meth:`decode` is to give back of unscaled features, shape ``(B, D)``."""
        return x_BD * self.scale

    def before_top_k(self, x_BD: torch.Tensor) -> torch.Tensor:
        """``relu(W_enc (x - b_pre) + b_enc)`` of unscaled features, shape ``(B, L)``."""
        activations_BL: torch.Tensor = self.encoder(self.scaled(x_BD) - self.pre_bias)
        return activations_BL.relu()

    def encode(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Latents of unscaled features, shape ``(B, L)``, at most k of each row above zero."""
        return self.top_k(self.before_top_k(x_BD))

    def top_k(self, a_BL: torch.Tensor) -> torch.Tensor:
        """The k largest of each row, zeros elsewhere."""
        return largest(a_BL, self.kept)

    def decode(self, z_BL: torch.Tensor) -> torch.Tensor:
        """Scaled features, shape ``(B, D)``."""
        x_BD: torch.Tensor = self.decoder(z_BL) + self.pre_bias
        return x_BD


def largest(a_BL: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, zeros elsewhere; of equal ones, k all the same."""
    values, places = a_BL.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(a_BL).scatter(-1, places, values)


def save_sae(sae: TopKAutoencoder, folder: Path) -> None:
    """Write the weights; :func:`load_sae` reads them.

    Raises:
        OSError: if the disk does not take them; SafetensorError likewise.
    """
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
    write_aside(folder / WEIGHTS, lambda path: save_file(tensors, path))


def load_sae(folder: Path, device: torch.device) -> TopKAutoencoder:
    """The autoencoder in ``folder``, in evaluation mode, frozen.

    Raises:
        InputError: if there is none, or its file is damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no autoencoder. Train it first: monolora vision sae.")
    try:
        found = load_file(folder / WEIGHTS)
        latents, dim = found["encoder.weight"].shape
        sae = TopKAutoencoder(dim, latents, int(found["k"]))
        sae.load_state_dict(found)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"Cannot load the autoencoder in {folder}: {in_one_line(error)} Train it again.") from error
    return sae.to(device).eval().requires_grad_(False)
