"""Measures a pull through the CRI; ``python -m bench.pull --help`` says how. The parts are those of the tests' lab."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
