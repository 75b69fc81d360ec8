"""Makes the parts that make pages importable, as they are for docs/generate.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "docs"))
