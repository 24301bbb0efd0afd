"""monolora: finetune aligned language models with sparse, readable low-rank units.

Importing it registers the PEFT method ``MONOLORA``.
"""

import monolora._quiet  # noqa: F401
from monolora.config import MonoLoraConfig
from monolora.functional import monolora_linear, monolora_reference
from monolora.layer import MonoLoraLayer
from monolora.model import MonoLoraModel
from monolora.register import register
from monolora.sparsity import SparsityCallback, SparsityMeter

__version__ = "0.1.0"

__all__ = [
    "MonoLoraConfig",
    "MonoLoraLayer",
    "MonoLoraModel",
    "SparsityCallback",
    "SparsityMeter",
    "monolora_linear",
    "monolora_reference",
]

register()
