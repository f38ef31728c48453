"""The commands that the documentation tells people to type."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "docker/README.md",
    "jobs/README.md",
]


def blocks(page: str) -> list[str]:
    """Its blocks of commands, each command in one line."""
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", (ROOT / page).read_text(), re.M | re.S)
    return [re.sub(r"\\\n\s*", "", textwrap.dedent(block)) for _, block in found]


def lines(page: str) -> list[str]:
    """Its commands."""
    return [line for block in blocks(page) for line in block.splitlines() if line]


def place(page: str) -> Path:
    """Where a page's commands are run."""
    return ROOT / "jobs" if page.startswith("jobs/") else ROOT
