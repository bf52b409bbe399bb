"""The benchmarks are scripts, not a package: their folders go on the path, as they do when one is run."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

sys.path += [str(BENCHMARKS), str(BENCHMARKS / "peers")]
