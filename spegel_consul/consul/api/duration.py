"""Durations in Go's notation: ``1m30s``, ``250ms``."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds; ValueError if ``text`` is not a Go duration with at least one unit."""
    if text == "0":  # because Go accepts a zero without a unit
        return 0.0
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        total += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    if not text or end != len(text):
        raise ValueError(f"not a duration: {text!r} (write it like 1m30s or 250ms)")
    return total


def format_duration(seconds: float) -> str:
    """Whole milliseconds, at least one, because Consul takes a wait of zero for its default of five minutes."""
    return f"{max(1, round(seconds * 1000))}ms"
