"""Serving MonoLoRA adapters and exact checkpoints with vLLM.

The plugin (:mod:`monolora.vllm.plugin`) is loaded by vLLM itself. :func:`verify` compares an engine with
transformers before its answers are relied on.
"""

from monolora.vllm.canary import Canary, CanaryError, CanaryUnknownError, Share, measure, verify
from monolora.vllm.versions import SUPPORTED_VLLM, check_vllm

__all__ = ["SUPPORTED_VLLM", "Canary", "CanaryError", "CanaryUnknownError", "Share", "check_vllm", "measure", "verify"]
