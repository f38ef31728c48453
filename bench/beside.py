# A miss and a pull are measured by benches of their own, which need root, a containerd and a Spegel.  What they found
# is kept, one measurement to a line, so that the page is made of the figures that were measured.

"""Figures beside Spegel's own program: kept in beside.json, and told in docs/performance.md.

``python -m bench.ring.miss`` and ``python -m bench.pull`` keep what they found with --keep. A measurement with the same
name replaces the one before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.tools import HERE

KEPT = HERE / "beside.json"
MISS, PULL = "miss", "pull"
SPEGEL = "Spegel"
_LOADED = 2.5
"""Load, for each core, above which the machine had much other work."""


@dataclass(frozen=True, slots=True)
class Way:
    """One program or setting: the median time, and CPU of all its processes; both of one miss (ms), or one pull (s)."""

    name: str
    time: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in one run: ``kind`` is :data:`MISS` or :data:`PULL`, ``name`` says of what."""

    kind: str
    name: str
    load: float
    ways: tuple[Way, ...]

    def ratio(self, name: str) -> tuple[float, float] | None:
        """Time and CPU of a way, as multiples of Spegel's."""
        found = {way.name: way for way in self.ways}
        if name not in found or SPEGEL not in found:
            return None
        ours, theirs = found[name], found[SPEGEL]
        return ours.time / theirs.time, ours.cpu / theirs.cpu


def keep(kind: str, name: str, ways: Sequence[Way], file: Path = KEPT) -> None:
    """Put a measurement into ``file``."""
    rounded = tuple(Way(way.name, round(way.time, 3), round(way.cpu, 3)) for way in ways)
    new = Measurement(kind, name, round(os.getloadavg()[0], 1), rounded)
    found = {(each.kind, each.name): each for each in load(file)} | {(kind, name): new}
    rows = [json.dumps(asdict(each)) for _, each in sorted(found.items())]
    file.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def load(file: Path = KEPT) -> list[Measurement]:
    """The measurements that are kept. Raises ValueError, KeyError or TypeError if it is no such file."""
    if not file.exists():
        return []
    rows = json.loads(file.read_text())
    return [Measurement(**row | {"ways": tuple(Way(**way) for way in row["ways"])}) for row in rows]


def tables(found: Sequence[Measurement], cores: int) -> Iterator[str]:
    """Markdown: a table for each kind."""
    for kind, unit in ((MISS, "ms"), (PULL, "s")):
        rows = [each for each in found if each.kind == kind]
        if rows:
            yield f"| {_TITLES[kind]} | | {unit} | x Spegel | CPU, {unit} | x Spegel |\n|---|---|---|---|---|---|"
        for each in rows:
            busy = f" (load {each.load:.0f})" if each.load > _LOADED * cores else ""
            for number, way in enumerate(each.ways):
                ratio = each.ratio(way.name)
                times, cpu = (f"{figure:.2f}" for figure in ratio) if ratio is not None else ("", "")
                paid, cpu = (f"{way.cpu:.2f}", cpu) if way.cpu else ("", "")
                name = "" if number else each.name + busy
                yield f"| {name} | {way.name} | {way.time:.2f} | {times} | {paid} | {cpu} |"
        if rows:
            yield ""


_TITLES = {MISS: "a miss in a ring", PULL: "a pull through the CRI"}
