# The tables at the end of the run are those in docs/reliability.md: SPEGEL_FAULTS_TABLE names the file, in which each
# takes the place of the lines between two markers.

"""What pulls noticed of each fault, as rows of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cold_scene import ColdRow
from tests.faults.scene import Row


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and the marker of its place in the document."""

    title: str
    header: list[str]
    marker: str


UNDER_LOAD = Table(
    "what pulls noticed of each fault",
    ["fault", "lasted", "pulls", "failed", "slowest", "from upstream", "lookups", "in vain", "one ring after"],
    "faults",
)
COLD_STARTS = Table(
    "cold starts in which something fails",
    [
        "fault",
        "pulls",
        "failed",
        "copies",
        "blobs from upstream",
        "first ready",
        "last ready",
        "line",
    ],
    "cold starts",
)
TABLES = (UNDER_LOAD, COLD_STARTS)


def row_of(row: Row) -> tuple[str, list[str], list[str]]:
    """As ``tests/conftest.py`` takes it."""
    cells = [row.fault, f"{row.lasted:.0f} s", str(row.pulls), str(row.failed), f"{row.slowest:.1f} s"]
    cells += [str(row.upstream), str(row.lookups), str(row.missed), f"{row.ring:.1f} s"]
    return UNDER_LOAD.title, UNDER_LOAD.header, cells


def cold_row_of(row: ColdRow) -> tuple[str, list[str], list[str]]:
    """As ``tests/conftest.py`` takes it."""
    cells = [row.fault, str(row.pulls), str(row.failed), f"{row.copies:.2f}", str(row.blobs)]
    cells += [f"{row.first:.1f} s", f"{row.last:.1f} s", f"{row.line:.1f} s"]
    return COLD_STARTS.title, COLD_STARTS.header, cells


def write(table: Table, rows: Sequence[Sequence[str]]) -> None:
    """Put ``rows`` into the document, if one is named and it has the markers of ``table``."""
    name = os.environ.get("SPEGEL_FAULTS_TABLE")
    if not name or not rows:
        return
    file, begin, end = Path(name), f"<!-- {table.marker}: begin -->\n", f"<!-- {table.marker}: end -->\n"
    before, found, rest = file.read_text().partition(begin)
    if not found:
        return
    after = rest.partition(end)[2]
    lines = [
        "| " + " | ".join(row) + " |" for row in (table.header, ["---", *("---:" for _ in table.header[1:])], *rows)
    ]
    file.write_text(before + begin + "\n".join(lines) + "\n" + end + after)
