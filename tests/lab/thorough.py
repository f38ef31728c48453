"""How thorough a run is: ``make test`` does what takes seconds, ``make faults`` and ``make fresh`` do everything."""

from __future__ import annotations

import os
import secrets

ALL = os.environ.get("SPEGEL_FAULTS") == "all"
"""Whether to take every fault at its full length, and every version of a runtime (``make faults``)."""

FRESH = "SPEGEL_FRESH" in os.environ
"""Whether to draw many inputs, and new ones (``make fresh``), instead of the same few."""

FIRST_SEED = secrets.randbelow(1 << 32) if FRESH else 1
"""The first seed of a test that draws its inputs; a failure names the seed or the input."""


def drawn(few: int, many: int) -> int:
    """The number of inputs to draw."""
    return many if FRESH else few
