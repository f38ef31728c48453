# The table at the end of the run is the one in docs/reliability.md: SPEGEL_FAULTS_TABLE names the file, in which it
# takes the place of the lines between two markers.

"""What pulls noticed of each fault, as rows of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.faults.scene import Row

TITLE = "what pulls noticed of each fault"
HEADER = ["fault", "lasted", "pulls", "failed", "slowest", "from upstream", "lookups", "in vain", "one ring after"]
_BEGIN, _END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"


def row_of(row: Row) -> tuple[str, list[str], list[str]]:
    """As ``tests/conftest.py`` takes it."""
    cells = [row.fault, f"{row.lasted:.0f} s", str(row.pulls), str(row.failed), f"{row.slowest:.1f} s"]
    cells += [str(row.upstream), str(row.lookups), str(row.missed), f"{row.ring:.1f} s"]
    return TITLE, HEADER, cells


def write(rows: Sequence[Sequence[str]]) -> None:
    """Put ``rows`` into the document, if there is one and all went through."""
    name = os.environ.get("SPEGEL_FAULTS_TABLE")
    if not name or not rows:
        return
    file = Path(name)
    before, _, rest = file.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ["---", *("---:" for _ in HEADER[1:])], *rows)]
    file.write_text(before + _BEGIN + "\n".join(lines) + "\n" + _END + after)
