"""``spegel-consul dev``, which is what people see first, with a real Consul on a machine of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from lab import parts
from lab.cluster import MakeCluster

pytestmark = pytest.mark.real

PAGE = re.compile(r"status page    http://127\.0\.0\.\d:5052/debug/web/ ")


def demonstration(cluster: MakeCluster, *flags: str) -> list[str]:
    """The lines of a demonstration that ends well."""
    (node,) = cluster(1, consul=False, containerd=None)
    program = Path(sys.executable).with_name("spegel-consul")
    environment = {"PATH": parts.path(parts.consul()), "COLUMNS": "120", "NO_COLOR": "1"}
    return node.netns.run(program, "dev", "--once", *flags, timeout=90, env=environment).splitlines()


def test_three_nodes(cluster: MakeCluster) -> None:
    first, *lines = demonstration(cluster, "--size=1")
    assert PAGE.match(first), "the page is named before anything else"
    assert re.match(r"ok: 5 of 5 pieces, 1\.0 MiB, came from a neighbour", lines[-1])
    pieces = [line for line in lines if "sha256:" in line]
    assert [" node1 (127.0.0.1:5050) " in line for line in pieces] == [True] * 5


def test_a_cold_start_shows_who_follows_whom(cluster: MakeCluster) -> None:
    first, *lines = demonstration(cluster, "--herd", "--size=4")
    assert PAGE.match(first)
    assert lines[-1].startswith("upstream copies = 1.0")
    tree = [line.partition("node") for line in lines if "━" in line]
    depths = {f"node{rest.split()[0]}": len(before) // 4 for before, _, rest in tree}
    assert len(depths) == 6
    assert sum(depth == 1 for depth in depths.values()) <= 2, "below the upstream is who downloads from there"
    assert max(depths.values()) >= 2, "and the others are below the nodes that they follow"
