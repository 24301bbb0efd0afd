"""Serving MonoLoRA adapters and exact checkpoints with vLLM.

The plugin (:mod:`monolora.vllm.plugin`) is loaded by vLLM itself. :func:`verify` compares an engine with
transformers before its answers are relied on.
"""

from monolora.patching import LIBRARIES, check_version
from monolora.vllm.canary import Canary, CanaryError, CanaryUnknownError, Share, measure, verify

SUPPORTED_VLLM = LIBRARIES["vllm"].supported


def check_vllm() -> None:
    """Check that MonoLoRA adapters can be served here.

    Raises:
        InputError: if vLLM is missing, or its version is outside :data:`SUPPORTED_VLLM`; with both versions.
    """
    check_version("vllm")


__all__ = ["SUPPORTED_VLLM", "Canary", "CanaryError", "CanaryUnknownError", "Share", "check_vllm", "measure", "verify"]
