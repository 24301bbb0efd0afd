"""How responses are generated. Each engine is a module with a generator function ``answers(job)``.

It runs in a worker process (:mod:`monolora.eval.process`): its job is JSON, and it yields one row per answer as soon as
the answer is finished. :func:`monolora.eval.generate.generate` writes the jobs and stores the rows.
"""

from __future__ import annotations

from typing import Any

from monolora.data.prompt_sets import content_key


def sampling_seed(seed: int, token_ids: Any) -> int:
    """The seed for sampling after a prompt: different for every prompt, the same for every model and engine.

    With one seed for all prompts their noise would be the same, and resampling prompts would not show it.
    """
    return int(content_key("seed", seed, token_ids)[:7], 16)
