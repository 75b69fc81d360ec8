"""Makes the packages of benchmarks/ importable, as they are for its scripts."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

sys.path.append(str(BENCHMARKS))
