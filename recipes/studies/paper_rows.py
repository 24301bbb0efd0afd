"""The paper's table 2, to stand beside a study's: Llama-2-7B-chat, judged by ShieldGemma-9B and Beavertails-7B."""

from __future__ import annotations

from typing import NamedTuple


class PaperRow(NamedTuple):
    """A row, in percent; None where the paper has a dash.

    Attributes:
        dangerous, harassment, hate, sexual: ShieldGemma's four policies, and ``average`` of them.
        alignment_sparsity, task_sparsity: of the units.
        flagged: by Beavertails-7B.
        task: accuracy on SST-2; on Dolly a metric that is not named.
    """

    dangerous: float
    harassment: float
    hate: float
    sexual: float
    average: float
    alignment_sparsity: float | None
    task_sparsity: float | None
    flagged: float
    task: float


TABLE_2 = {
    "sst2": {
        "base": PaperRow(7.66, 2.88, 6.14, 2.64, 4.83, None, None, 20.90, 88.65),
        "LoRA": PaperRow(8.48, 6.91, 9.43, 6.77, 7.90, 0.0, 0.0, 20.60, 92.78),
        "MonoLoRA": PaperRow(5.37, 2.23, 4.63, 1.88, 3.53, 45.54, 36.71, 20.00, 94.84),
    },
    "dolly": {
        "base": PaperRow(7.66, 2.88, 6.14, 2.64, 4.83, None, None, 20.90, 10.21),
        "LoRA": PaperRow(10.54, 3.53, 7.53, 2.86, 6.12, 0.0, 0.0, 23.80, 14.08),
        "MonoLoRA": PaperRow(10.49, 3.56, 7.40, 2.70, 6.04, 38.69, 40.00, 22.60, 14.48),
    },
}
