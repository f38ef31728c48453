"""Measures a cold start; ``python -m bench.herd --help`` says how. Nodes and runtimes are those of the tests' lab."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
