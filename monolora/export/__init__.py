"""Checkpoints and LoRA adapters in the formats of other programs: GGUF for llama.cpp, and a Modelfile for Ollama."""

from monolora.export.gguf import TYPES, read_tensors, write_gguf
from monolora.export.gguf_lora import adopt_gguf_lora, write_gguf_lora
from monolora.export.modelfile import modelfile

__all__ = ["TYPES", "adopt_gguf_lora", "modelfile", "read_tensors", "write_gguf", "write_gguf_lora"]
