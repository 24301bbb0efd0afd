"""Training programs. Packaged as ``monolora.recipes``; imported by that name everywhere."""

import logging

# bitsandbytes warns, whenever PEFT imports it, of an optional kernel that it would fetch from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
