"""Imported first: silences one line that bitsandbytes logs when PEFT imports it, about an optional kernel of a hub."""

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.msg.startswith("Failed to load CPU gemm_4bit_forward")
)
