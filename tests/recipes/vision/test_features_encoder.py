"""The encoder: a ResNet-18 by size and by output, NCL's one ReLU, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from monolora.errors import InputError
from monolora.recipes.vision.features import CONFIG, WEIGHTS, Encoder, EncoderConfig, load_encoder, save_encoder

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _config(**changed: object) -> EncoderConfig:
    tiny = EncoderConfig(
        non_negative=False, stem="cifar", width=4, projector_hidden=12, projector_out=10, image_size=16,
        mean=MEAN, std=STD,
    )  # fmt: skip
    return tiny._replace(**changed)


@pytest.fixture
def make() -> Callable[..., Encoder]:
    """``make(stem="cifar", …)``: an encoder, in evaluation mode, whose norms' statistics are not those of the start."""

    def encoder(seed: int = 0, **changed: object) -> Encoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Encoder(_config(**changed))
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean, std=0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
        return network.eval()

    return encoder


def _images(size: int = 16) -> torch.Tensor:
    return torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_paper_sized_backbone_is_a_resnet18() -> None:
    """The usual ResNet-18 for CIFAR has 11,173,962 parameters, 5,130 of them in its classifier of 10 classes."""
    with torch.device("meta"):
        encoder = Encoder(_config(width=64, projector_hidden=16384, projector_out=2048))
        original = Encoder(_config(width=64, stem="imagenet"))
    assert _parameters(encoder.backbone) == 11_173_962 - 5_130
    assert _parameters(encoder.projector) == 512 * 16384 + 16384 + 16384 * 2048 + 2048
    assert _parameters(original.backbone) == 11_689_512 - (512 * 1000 + 1000)  # ResNet-18 for ImageNet, less its head


@pytest.mark.parametrize(("stem", "reduced_by"), [("cifar", 8), ("cifar-strided", 16), ("imagenet", 32)])
def test_stems_reduce_the_image(make: Callable[..., Encoder], stem: str, reduced_by: int) -> None:
    with torch.no_grad():
        last = make(stem=stem).backbone(_images(64)).last_hidden_state
    assert last.shape == (5, 32, 64 // reduced_by, 64 // reduced_by)


def test_the_imagenet_stem_is_transformers_own(make: Callable[..., Encoder]) -> None:
    encoder = make(stem="imagenet", width=8)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 2, 2], layer_type="basic", hidden_act="relu"
    )
    original = ResNetModel(config).eval()
    original.load_state_dict(encoder.backbone.state_dict())
    with torch.no_grad():
        expected = original(_images(64)).pooler_output.flatten(1)
        torch.testing.assert_close(encoder(_images(64))[0], expected, rtol=0, atol=0)


def _block(x: torch.Tensor, weights: dict[str, torch.Tensor], stride: int) -> torch.Tensor:
    """A basic block of He et al., 2016, from its weights."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, gain, bias = (
            weights[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    def convolved(x: torch.Tensor, name: str, stride: int, padding: int) -> torch.Tensor:
        x = nn.functional.conv2d(x, weights[f"{name}.convolution.weight"], stride=stride, padding=padding)
        return norm(x, f"{name}.normalization")

    inner = convolved(convolved(x, "layer.0", stride, 1).relu(), "layer.1", 1, 1)
    around = convolved(x, "shortcut", stride, 0) if "shortcut.convolution.weight" in weights else x
    return (inner + around).relu()


def test_the_cifar_backbone_is_its_formula(make: Callable[..., Encoder]) -> None:
    encoder = make()
    state = {name.removeprefix("backbone."): value for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        x = nn.functional.conv2d(_images(), state["embedder.embedder.convolution.weight"], padding=1)
        first = encoder.backbone.embedder.embedder.normalization
        x = first(x).relu()
        for stage in range(4):
            for layer in range(2):
                prefix = f"encoder.stages.{stage}.layers.{layer}."
                weights = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
                x = _block(x, weights, stride=2 if stage > 0 and layer == 0 else 1)
        backbone_BF, z_BD = encoder(_images())
        torch.testing.assert_close(backbone_BF, x.mean((2, 3)), rtol=1e-4, atol=1e-5)
        first, last = encoder.projector[0], encoder.projector[2]
        hidden = (backbone_BF @ first.weight.T + first.bias).clamp(min=0)
        torch.testing.assert_close(z_BD, hidden @ last.weight.T + last.bias, rtol=1e-4, atol=1e-6)


def test_ncl_is_simclr_and_one_relu(make: Callable[..., Encoder]) -> None:
    simclr, ncl = make(), make(non_negative=True)
    ncl.load_state_dict(simclr.state_dict())
    with torch.no_grad():
        (backbone, z_BD), (same, non_negative_BD) = simclr(_images()), ncl(_images())
    assert torch.equal(backbone, same)
    assert (z_BD < 0).any()
    assert (z_BD > 0).any()
    assert torch.equal(non_negative_BD, z_BD.clamp(min=0))


def test_backbone_output_is_non_negative_already(make: Callable[..., Encoder]) -> None:
    """Why finetuning takes the projector's output: NCE's ReLU would do nothing to the backbone's."""
    with torch.no_grad():
        assert (make()(_images())[0] >= 0).all()


def test_normalised_takes_the_middle(make: Callable[..., Encoder]) -> None:
    pixels = torch.randint(0, 256, (2, 3, 21, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = make().normalised(pixels)
    middle = pixels[:, :, 2:18, 2:18].numpy() / 255
    for channel in range(3):
        expected = torch.from_numpy((middle[:, channel] - MEAN[channel]) / STD[channel]).float()
        torch.testing.assert_close(normalised[:, channel], expected, rtol=1e-5, atol=1e-6)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_images_smaller_than_in_training_are_refused(make: Callable[..., Encoder]) -> None:
    pixels = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"of 16 pixels a side, these have 12. Give --image-size 16"):
        make().normalised(pixels)


@pytest.mark.parametrize(
    "changed", [{}, {"stem": "imagenet", "non_negative": True}, {"stem": "cifar-strided"}], ids=str
)
def test_saved_and_loaded_is_the_same_to_the_bit(
    make: Callable[..., Encoder], tmp_path: Path, changed: dict[str, object]
) -> None:
    encoder = make(**changed)
    save_encoder(encoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, CONFIG])
    loaded = load_encoder(tmp_path, CPU)
    assert loaded.config == encoder.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    before, after = encoder.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = encoder.standardised(_images())
    with torch.no_grad():
        for a, b in zip(encoder.to(memory_format=torch.channels_last)(images), loaded(images), strict=True):
            assert torch.equal(a, b)


def _without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def _half_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def _text_config(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def _changed(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        _without_config, _half_weights, _no_weights, _text_config,
        _changed(width=8), _changed(stem="imagenet"), _changed(mean=None), _changed(width=None), _changed(extra=1),
        _changed(mean=5), _changed(width="four"), _changed(mean=[0.5]),
    ],
    ids=["no config", "half the weights", "no weights", "cut config", "other width", "other stem", "no mean",
         "no width", "extra key", "mean no list", "width no number", "one channel"],
)  # fmt: skip
def test_damaged_files_are_refused(make: Callable[..., Encoder], tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    save_encoder(make(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=r"Cannot load the encoder in .* Pretrain again") as raised:
        load_encoder(tmp_path, CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_config_that_is_no_mapping_is_refused(make: Callable[..., Encoder], tmp_path: Path, content: str) -> None:
    save_encoder(make(), tmp_path)
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(InputError, match="Cannot load the encoder"):
        load_encoder(tmp_path, CPU)


def test_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no encoder. Pretrain first: monolora vision pretrain"):
        load_encoder(tmp_path, CPU)
