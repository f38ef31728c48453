# The table in docs/reliability.md is what the last complete run measured: SPEGEL_FAULTS_TABLE names the file, in which
# it takes the place of the lines between two markers.

"""Rows as lines of Markdown, for people who read a terminal and for people who read the document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.faults.scene import Row

PROPERTY = "fault"
_BEGIN, _END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"
_HEAD = (
    "what happened",
    "for",
    "pulls",
    "failed",
    "slowest",
    "blobs from upstream",
    "lookups",
    "found nobody",
    "one ring after",
)


def lines(rows: Sequence[Row]) -> list[str]:
    cells = [_HEAD, *(_cells(row) for row in rows), _total(rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    text = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if not column else ":") for column, width in enumerate(widths)) + "|"
    return [text[0], rule, *text[1:]]


def write(rows: Sequence[Row]) -> None:
    name = os.environ.get("SPEGEL_FAULTS_TABLE")
    if not name:
        return
    file = Path(name)
    before, _, rest = file.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    file.write_text(before + _BEGIN + "\n".join(lines(rows)) + "\n" + _END + after)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.fault,
        f"{row.lasted:.0f} s",
        str(row.pulls),
        str(row.failed),
        f"{row.slowest:.1f} s",
        str(row.upstream),
        str(row.lookups),
        str(row.missed),
        f"{row.ring:.1f} s",
    )


def _total(rows: Sequence[Row]) -> tuple[str, ...]:
    return (
        "**all**",
        f"{sum(row.lasted for row in rows):.0f} s",
        str(sum(row.pulls for row in rows)),
        str(sum(row.failed for row in rows)),
        f"{max(row.slowest for row in rows):.1f} s",
        str(sum(row.upstream for row in rows)),
        str(sum(row.lookups for row in rows)),
        str(sum(row.missed for row in rows)),
        f"{max(row.ring for row in rows):.1f} s",
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
