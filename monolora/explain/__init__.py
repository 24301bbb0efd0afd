"""What each unit of an adapter fires on, what it does, and how it goes with labels: measured in one pass.

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
