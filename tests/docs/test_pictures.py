"""The pictures of README.md: small, from the run that is kept, and without anything from elsewhere."""

from __future__ import annotations

import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
SCRIPT = runpy.run_path(str(ROOT / ".ci/pictures.py"))


def test_the_drawing_is_that_of_the_run_that_is_kept() -> None:
    svg = (IMAGES / "herd.svg").read_text()
    assert svg == SCRIPT["drawing"]((IMAGES / "herd.txt").read_text()), "stale: python .ci/pictures.py --drawing"
    words = "".join(ElementTree.fromstring(svg).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    assert "upstream copies = 1.00" in words
    assert not re.search(r"(?:href|src)=|url\((?!#)", svg), "it loads nothing"


def test_what_is_kept_of_a_run_is_its_begin_its_middle_and_its_end() -> None:
    frames = [f"\x1b[1mupstream\x1b[0m sent {number} MiB\r\n└── node1" for number in range(5)]
    erase = "\r\x1b[2K\x1b[1A\x1b[2K"
    said = "status page\r\n\x1b[?25l" + erase.join(frames) + "\r\n\x1b[?25hupstream copies = 1.00\r\n"
    kept = re.sub(r"\x1b\[\d*m", "", SCRIPT["kept"](said))
    assert kept.split("\n\n") == [
        "status page",
        "upstream sent 2 MiB\n└── node1",
        "upstream sent 4 MiB\n└── node1\nupstream copies = 1.00\n",
    ]


@pytest.mark.parametrize("path", sorted(IMAGES.iterdir()), ids=lambda path: path.name)
def test_pictures_are_small_and_shown_somewhere(path: Path) -> None:
    assert path.stat().st_size < 100_000
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert path.suffix == ".txt" or any(f"images/{path.name})" in page.read_text() for page in pages)
