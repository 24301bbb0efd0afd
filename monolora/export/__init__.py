"""Checkpoints in the formats of other programs: GGUF for llama.cpp, and a Modelfile for Ollama."""

from monolora.export.gguf import TYPES, write_gguf
from monolora.export.modelfile import modelfile

__all__ = ["TYPES", "modelfile", "write_gguf"]
