"""The encoder (section 3.1.1): a ResNet-18 and a projector. SimCLR's and NCL's are one ReLU apart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from monolora.atomic import write_json, write_tensors
from monolora.errors import InputError, in_one_line
from monolora.files import read_json

WEIGHTS, CONFIG = "encoder.safetensors", "encoder.json"
_STEM_STRIDE = {"cifar": 1, "cifar-strided": 2}


class EncoderConfig(NamedTuple):
    """The architecture of an encoder, and the normalisation of its inputs.

    Attributes:
        non_negative: whether NCL's ReLU is on the projector's output.
        stem: ``cifar`` (3x3, no pooling), ``cifar-strided`` (the same at half the size) or ``imagenet``.
        width: channels of the first stage; ResNet-18 has 64.
        projector_hidden, projector_out: units of the projector's two layers.
        image_size: pixels a side.
        mean, std: of the training images; inputs are normalised by them.
    """

    non_negative: bool
    stem: str
    width: int
    projector_hidden: int
    projector_out: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Encoder(nn.Module):
    """Images to representations."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _resnet18(config)
        self.projector = nn.Sequential(
            nn.Linear(self.backbone_dim, config.projector_hidden),
            nn.ReLU(),
            nn.Linear(config.projector_hidden, config.projector_out),
        )
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @property
    def backbone_dim(self) -> int:
        """Dimensions of the backbone's output."""
        return 8 * self.config.width

    def normalised(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """``uint8`` images as inputs of the network: their centre, normalised, channels last.

        Raises:
            InputError: if they are smaller than the images that the encoder was trained on.
        """
        size = self.config.image_size
        if min(pixels_B3SS.shape[-2:]) < size:
            raise InputError(
                f"The encoder was trained on images of {size} pixels a side, these have "
                f"{min(pixels_B3SS.shape[-2:])}. Give --image-size {size}, as in pretraining."
            )
        top, left = ((side - size) // 2 for side in pixels_B3SS.shape[-2:])
        centre = pixels_B3SS[..., top : top + size, left : left + size]
        return self.standardised(centre.float() / 255)

    def standardised(self, images_B3SS: torch.Tensor) -> torch.Tensor:
        """Images from 0 to 1, normalised by mean and standard deviation, channels last."""
        return ((images_B3SS - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images_B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Backbone output, shape ``(B, backbone_dim)``, and representation, shape ``(B, projector_out)``."""
        backbone_BF = self.backbone(images_B3SS).pooler_output.flatten(1)
        z_BD = self.projector(backbone_BF)
        return backbone_BF, z_BD.relu() if self.config.non_negative else z_BD


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write weights and config; :func:`load_encoder` reads them.

    Raises:
        OSError: if the disk does not take them; SafetensorError likewise.
    """
    write_tensors(folder / WEIGHTS, encoder.state_dict())
    write_json(folder / CONFIG, encoder.config._asdict())


def load_encoder(folder: Path, device: torch.device) -> Encoder:
    """The encoder in ``folder``, in evaluation mode, frozen, channels last.

    Raises:
        InputError: if there is none, or its files are damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no encoder. Pretrain first: monolora vision pretrain.")
    try:
        config = read_json(folder / CONFIG, "")
        config |= {name: tuple(config[name]) for name in ("mean", "std")}
        encoder = Encoder(EncoderConfig(**config))
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"Cannot load the encoder in {folder}: {in_one_line(error)} Pretrain again.") from error
    moved = cast(Encoder, encoder.to(device).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    return moved.eval().requires_grad_(False)


def _resnet18(config: EncoderConfig) -> ResNetModel:
    width = config.width
    backbone = ResNetModel(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
    )
    if config.stem in _STEM_STRIDE:  # 3x3 without pooling: ImageNet's stem would shrink 32 pixels to 8
        stride = _STEM_STRIDE[config.stem]
        backbone.embedder.embedder.convolution = nn.Conv2d(3, width, 3, stride=stride, padding=1, bias=False)
        backbone.embedder.pooler = nn.Identity()
    return backbone
