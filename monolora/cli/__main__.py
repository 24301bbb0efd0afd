"""``python -m monolora.cli``: the ``monolora`` command where its script is not on the path."""

from monolora.cli import main

raise SystemExit(main())
