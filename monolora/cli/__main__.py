"""``python -m monolora.cli``: the ``monolora`` command where its script is not on the path."""

import sys

from monolora.cli import main

sys.exit(main())
