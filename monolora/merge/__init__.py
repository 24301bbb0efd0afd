"""MonoLoRA adapters into Hugging Face checkpoints: linearly for any server, or exactly; and how much a merge keeps."""

from monolora.merge.least_squares import LinearMap, export_dense
from monolora.merge.linearize import linearize
from monolora.merge.lora import export_lora
from monolora.merge.quantizer import export_exact
from monolora.merge.unload import Units, unload
from monolora.merge.verify import Fidelity, verify

__all__ = [
    "Fidelity",
    "LinearMap",
    "Units",
    "export_dense",
    "export_exact",
    "export_lora",
    "linearize",
    "unload",
    "verify",
]
