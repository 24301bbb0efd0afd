"""Whoever imports monolora and PEFT or transformers, in whichever order, finds the method registered."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

import monolora

# Runs each piece of code in a fork of a process that has imported what takes long and is none of the three packages.
FORKS = """
import json, os, sys, traceback
import accelerate, bitsandbytes, datasets, sklearn.metrics, torch._dynamo, torch.distributed.tensor
assert not {"monolora", "peft", "transformers"} & {name.partition(".")[0] for name in sys.modules}
for name, code in json.loads(sys.argv[1]).items():
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    print(json.dumps([name, os.fdopen(read).read()]))
"""
CHECK = """
import sys
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from monolora.merge.unload import BAKED
import monolora
assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("MONOLORA")] is monolora.MonoLoraModel
assert BAKED in AUTO_QUANTIZER_MAPPING
assert not any(type(finder).__module__.startswith("monolora") for finder in sys.meta_path)
"""
ORDERS = {
    "before PEFT": "import monolora, sys; assert 'transformers' not in sys.modules; import peft",
    "after PEFT": "import peft; assert not hasattr(peft.PeftType, 'MONOLORA'); import monolora",
    "one of its modules": "import monolora.config",
    "a module of PEFT": "import monolora; from peft.tuners.lora import LoraConfig",
    "before transformers": "import monolora; from transformers import AutoConfig",
    "after transformers": "from transformers import AutoConfig; import monolora",
    "what imports PEFT half way": "import monolora; from transformers import TrainingArguments",
    "what imports transformers half way": "import monolora; import trl; from trl import SFTConfig",
    "its public names": "from monolora import *; assert MonoLoraConfig().peft_type == 'MONOLORA'",
    "reloaded": "import importlib, monolora; importlib.reload(monolora); import peft; importlib.reload(monolora)",
    "unpickled": "import pickle; assert pickle.loads(b'cmonolora.config\\nMonoLoraConfig\\n.')().r == 8",
    "in threads": """
import threading, monolora
failures = []
def use(statement):
    try:
        exec(statement + "; from peft import PeftType; PeftType('MONOLORA')", {})
    except BaseException as error:
        failures.append(error)
statements = 4 * ["import monolora, peft", "from peft import LoraConfig"]
threads = [threading.Thread(target=use, args=[statement]) for statement in statements]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures
""",
}
# Each import fails with the same message, and nothing is left half registered.
REFUSED = """
from monolora import registration
def refuse():
    raise ValueError("this PEFT is not supported")
registration._register = refuse
for _ in range(2):
    try:
        import peft
    except ValueError as error:
        assert "not supported" in str(error)
    else:
        raise AssertionError
"""


@cache
def failures() -> dict[str, str]:
    """By name, what went wrong; empty where nothing did."""
    codes = {name: f"{code}\n{CHECK}" for name, code in ORDERS.items()} | {"refused": REFUSED}
    words = [sys.executable, "-c", FORKS, json.dumps(codes)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(map(json.loads, ended.stdout.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("order", [*ORDERS, "refused"])
def test_every_order(order: str) -> None:
    assert failures()[order] == ""


def test_public_names() -> None:
    assert set(monolora.__all__) <= set(dir(monolora))
    with pytest.raises(AttributeError, match="has no attribute 'MonoLoraConfg'"):
        _ = monolora.MonoLoraConfg
