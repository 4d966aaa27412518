"""``python -m sana_nodes`` is ``sana-nodes``."""

import sys

from .cli import main

sys.exit(main())
