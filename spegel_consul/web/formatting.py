"""Formats of numbers and names for people, the same on the command line and on the status page."""

from __future__ import annotations

import time
from collections.abc import Sequence


def size(count: float | None) -> str:
    """Bytes: ``3.4 MiB``."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def part(count: float, whole: float | None) -> str:
    """Bytes of a whole: ``41 of 64 MiB``; the bytes alone if the whole is unknown."""
    if not whole:
        return size(count)
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = next((power for power in range(len(units)) if whole < 1024 ** (power + 1)), len(units) - 1)
    shown, of = (
        f"{value:.0f}" if power == 0 or value >= 10 or value == 0 else f"{value:.1f}"
        for value in (count / 1024**power, whole / 1024**power)
    )
    return f"{shown} of {of} {units[power]}"


def number(count: float) -> str:
    """A count: ``1,204``."""
    return f"{count:,.0f}"


def speed(count: float | None) -> str:
    """Bytes a second: ``3.4 MiB/s``."""
    return "–" if count is None else f"{size(count)}/s"


def milliseconds(value: float | None) -> str:
    """``0.4 ms``, ``120 ms``, ``3.2 s``."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s"


def seconds(value: float | None) -> str:
    """A time span: ``3 s``, ``5 min``, ``7 h``, ``12 d``."""
    if value is None:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s" if value >= 1 else "now"


def ago(at: float | None) -> str:
    """A Unix time: ``3 s ago``; ``never`` for None."""
    if at is None:
        return "never"
    span = seconds(max(0.0, time.time() - at))
    return "just now" if span == "now" else f"{span} ago"


def share(value: float | None) -> str:
    """A ratio: ``98 %``."""
    return "–" if value is None else f"{value * 100:.0f} %"


def short(digest: str) -> str:
    """The beginning of a digest: ``sha256:0123456789ab``."""
    algorithm, colon, encoded = digest.partition(":")
    return f"{algorithm}:{encoded[:12]}" if colon and len(encoded) > 12 else digest


def image(name: str, most: int = 60) -> str:
    """An image name without the default registry, with a short digest, and elided to ``most`` characters or so."""
    name, at, digest = name.partition("@")
    name = name.removeprefix("docker.io/library/").removeprefix("docker.io/")
    end = f"@{short(digest)}"[:40] if at else ""
    return elided(name, max(10, most - len(end))) + end


def elided(name: str, most: int) -> str:
    """A name in ``most`` characters; a longer one is cut in the middle, because its ends distinguish it."""
    head = most // 3
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}"


def few(names: Sequence[str]) -> str:
    """``a, b, c and 9 more``."""
    shown = ", ".join(elided(name, 40) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
