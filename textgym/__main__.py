"""``python -m textgym`` is the command ``textgym``."""

import sys

from textgym.cli import main

sys.exit(main())
