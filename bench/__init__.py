"""Measures the sidecar against nginx, docker-registry and Go; ``python -m bench --help`` says how."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
