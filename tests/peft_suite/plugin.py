"""The pytest plugin that turns PEFT's tests of LoRA into tests of MonoLoRA."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from peft.config import PeftConfigMixin

from monolora import MonoLoraConfig

from .expected import MUST_RAISE, REFUSED_MODEL, REFUSED_ROW, WAIVED, Failure

# Before any test module says `from peft import LoraConfig`.
peft.LoraConfig = MonoLoraConfig  # type: ignore[misc]

_OUR_CONFIG = re.compile(r"\bLoraConfig\b")
_OTHER_CONFIG = re.compile(r"\b(?!LoraConfig\b|PeftConfig\b)[A-Z]\w*Config\b")


@contextmanager
def _already_offline(model_id: str) -> Iterator[None]:
    """Stands for ``hub_online_once``, which goes online for the first use of a model."""
    yield


def pytest_configure(config: pytest.Config) -> None:
    """Import the helpers of PEFT's tests, adapted to what is here."""
    pytest.register_assert_rewrite("tests.testing_common")
    # The helpers import this class for tests of image models, which are not run here.
    diffusers = ModuleType("diffusers")
    diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
    sys.modules["diffusers"] = diffusers
    import tests.testing_utils

    tests.testing_utils.hub_online_once = _already_offline
    import tests.testing_common

    del sys.modules["diffusers"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every run draws the same weights, whatever ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Drop what does not concern LoRA, and mark the tests that must fail."""
    kept: list[pytest.Function] = []
    dropped: list[pytest.Function] = []
    refused: set[str] = set()
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if _tests_another_method(item, params):
            dropped.append(item)
            continue
        if _is_refused(params):
            row = f"{item.path.name} {params.get('model_id')} {params['config_kwargs']}"
            (dropped if row in refused else kept).append(item)
            refused.add(row)
            _expect(item, REFUSED_ROW, "must raise")
            continue
        kept.append(item)
        for kind, failures in {"waived": WAIVED, "must raise": MUST_RAISE}.items():
            for failure in failures:
                if re.fullmatch(failure.tests, item.name):
                    _expect(item, failure, kind)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def _expect(item: pytest.Function, failure: Failure, kind: str) -> None:
    raises = pytest.RaisesExc(failure.error, match=failure.message)
    item.add_marker(pytest.mark.xfail(strict=True, raises=raises, reason=f"{kind}: {failure.reason}"))


def _tests_another_method(item: pytest.Function, params: dict[str, Any]) -> bool:
    classes = [value if isinstance(value, type) else type(value) for value in params.values()]
    configs = [cls for cls in classes if issubclass(cls, PeftConfigMixin)]
    if configs:
        return not any(issubclass(cls, MonoLoraConfig) for cls in configs)
    for scope in (item.function, item.cls):
        source = inspect.getsource(scope)
        if _OUR_CONFIG.search(source) or _OTHER_CONFIG.search(source):
            return not _OUR_CONFIG.search(source)
    return False


def _is_refused(params: dict[str, Any]) -> bool:
    """Whether the row is of LoRA, with options or on a model that MonoLoRA refuses."""
    if params.get("config_cls") is not MonoLoraConfig or "config_kwargs" not in params:
        return False
    try:
        MonoLoraConfig(**params["config_kwargs"])
    except ValueError:
        return True
    return params.get("model_id") == REFUSED_MODEL
