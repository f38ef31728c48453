"""Reading mappings, and a layout to measure with."""

from __future__ import annotations

import json
from pathlib import Path

from bench.memory import Total, parse_maps, write_layout

SMAPS = """\
55d0-55d1 rw-p 00000000 00:00 0    [heap]
Rss:     2048 kB
Private_Dirty:     1024 kB
7f00-7f01 r-xp 00000000 08:01 42   /usr/lib/libssl.so.3
Rss:     1024 kB
Private_Dirty:        0 kB
7f01-7f02 r--p 00000000 08:01 43   /usr/lib/locale/LC_CTYPE
Rss:      512 kB
Private_Dirty:        0 kB
7f02-7f03 rw-p 00000000 00:00 0
Rss:     4096 kB
Private_Dirty:     4096 kB
"""


def test_mappings_are_told_apart() -> None:
    assert parse_maps(SMAPS) == {
        "malloc heap": Total(2.0, 1.0),
        "stack of the main thread": Total(0.0, 0.0),
        "extension modules and libraries": Total(1.0, 0.0),
        "other files": Total(0.5, 0.0),
        "pymalloc, mapped memory, stacks of threads": Total(4.0, 4.0),
    }


def test_a_layout_has_as_many_blobs_as_asked(tmp_path: Path) -> None:
    write_layout(tmp_path, 40)
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 40
    assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 10
