"""Serving MonoLoRA adapters and exact checkpoints with vLLM.

The plugin (:mod:`monolora.serving.plugin`) is loaded by vLLM itself. :func:`verify` compares an engine with
transformers before its answers are relied on.
"""

from monolora.serving.canary import measure, verify
from monolora.serving.verdict import Canary, CanaryError, CanaryUnknownError, Share
from monolora.serving.versions import SUPPORTED_VLLM, check_vllm

__all__ = ["SUPPORTED_VLLM", "Canary", "CanaryError", "CanaryUnknownError", "Share", "check_vllm", "measure", "verify"]
