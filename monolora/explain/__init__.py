"""What each unit of an adapter fires on, what it does, and how it goes with labels: measured in one pass.

Example:
    >>> layout = Layout.of(model)
    >>> found = collect(model, texts, groups=2, pad_token_id=0)
    >>> found.firing[layout.units.index(UnitName("model.layers.3.self_attn.q_proj", 5))]
"""

from monolora.explain.collect import collect
from monolora.explain.collected import Collected, Collector
from monolora.explain.layout import Layout
from monolora.explain.texts import Text

__all__ = ["Collected", "Collector", "Layout", "Text", "collect"]
