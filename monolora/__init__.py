"""monolora: finetune aligned language models with sparse, readable low-rank units.

Importing it registers the PEFT method ``MONOLORA`` (see :mod:`monolora.registration`). The public names are imported
when they are first used: the command line shares this package, and answers without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from monolora.registration import register_when_needed

if TYPE_CHECKING:
    from monolora.activations import Activation, register_activation
    from monolora.config import MonoLoraConfig
    from monolora.functional import monolora_linear, monolora_reference
    from monolora.layer import MonoLoraLayer
    from monolora.model import MonoLoraModel
    from monolora.sparsity import SparsityCallback, SparsityMeter

__version__ = "0.2.0"

__all__ = [
    "Activation",
    "MonoLoraConfig",
    "MonoLoraLayer",
    "MonoLoraModel",
    "SparsityCallback",
    "SparsityMeter",
    "monolora_linear",
    "monolora_reference",
    "register_activation",
]

_MODULES = {
    "Activation": "activations",
    "MonoLoraConfig": "config",
    "MonoLoraLayer": "layer",
    "MonoLoraModel": "model",
    "SparsityCallback": "sparsity",
    "SparsityMeter": "sparsity",
    "monolora_linear": "functional",
    "monolora_reference": "functional",
    "register_activation": "activations",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
