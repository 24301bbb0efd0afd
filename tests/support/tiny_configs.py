"""Settings of tiny decoders, for the configs of any family that has these fields."""

from __future__ import annotations

SMALL = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
