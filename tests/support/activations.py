"""Every registered activation, by a name that a config takes."""

from __future__ import annotations

from monolora.activations import activation_named, activation_names

NAMES = tuple(name.replace("<k>", "2") for name in activation_names())
FUSED = tuple(name for name in NAMES if activation_named(name).gradient is not None)
