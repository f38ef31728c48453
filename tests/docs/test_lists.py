"""The steps of a page are one numbered list in the site too, as in the repository.

The site's Markdown ends a step at content that is indented by less than four spaces, and takes a numbered list right
after one with dots for a part of it. A rule about the form of the pages belongs here.
"""

from __future__ import annotations

import importlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import yaml
from lab.documents import ROOT

SITE = [*sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")), "jobs/README.md", "consul/README.md"]
EXTENSIONS = [
    each if isinstance(each, str) else next(iter(each))
    for each in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["markdown_extensions"]
]


class Lists(HTMLParser):
    """The number of items of each numbered list."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[int] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in {"ol", "ul"}:
            self._open.append(tag)
            if tag == "ol":
                self.found.append(0)
        elif tag == "li" and self._open[-1] == "ol":
            self.found[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in {"ol", "ul"}:
            self._open.pop()


def written(text: str) -> list[int]:
    """The number of steps of each numbered list of ``text``."""
    numbers = [
        int(number)
        for number in re.findall(r"^(\d+)\. ", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S), re.M)
    ]
    ends = [*(index for index, number in enumerate(numbers) if number == 1), len(numbers)]
    return [end - start for start, end in pairwise(ends)]


@pytest.mark.parametrize("page", SITE)
def test_numbered_lists_are_whole(page: str) -> None:
    text = (ROOT / page).read_text()
    assert Lists(importlib.import_module("markdown").markdown(text, extensions=EXTENSIONS)).found == written(text)
