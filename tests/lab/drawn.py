"""How many inputs a test draws: few and the same ones in ``make test``, many and new ones in ``make fresh``."""

from __future__ import annotations

import os
import secrets

FRESH = "SPEGEL_FRESH" in os.environ

FIRST_SEED = secrets.randbelow(1 << 32) if FRESH else 1
"""The first seed of a test that draws its inputs; a failure names the seed or the input."""


def count(few: int, many: int) -> int:
    """The number of inputs to draw."""
    return many if FRESH else few
