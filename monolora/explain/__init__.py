"""Each unit of an adapter, measured in one pass: the tokens it fires on, its effect, its association with labels.

Example:
    >>> layout = Layout.of(model)
    >>> collected = collect(model, texts, groups=2, pad_token_id=0)
    >>> collected.firing[layout.units.index(UnitName("model.layers.3.self_attn.q_proj", 5))]
"""

from monolora.explain.collector import collect
from monolora.explain.contexts import Text
from monolora.explain.unit_statistics import Collected, Collector
from monolora.units import Layout

__all__ = ["Collected", "Collector", "Layout", "Text", "collect"]
