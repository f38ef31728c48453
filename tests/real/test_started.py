"""The sidecar started as the documentation says, by nothing but that line, on a machine with Docker and Consul."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from lab import documents, parts
from lab.certificates import Authority
from lab.process import Process, until

pytestmark = pytest.mark.real

STARTS = {
    line: page
    for page in reversed(documents.PAGES)
    for line in documents.lines(page)
    if "spegel-consul registry" in line and "--help" not in line
}
"""The page of each line; the first one, if several have it."""


def test_every_line_that_starts_a_sidecar_starts_one_that_is_ready(cluster) -> None:
    (node,) = lab = cluster(1, containerd=None)
    docker = node.add_docker("28", installed=True)
    authority = Authority.make(lab.dir, "nodes")
    authority.path.rename(lab.dir / "nodes.crt")
    for path, name in zip(authority.issue(lab.dir, "node", node.ip), ("node.crt", "node.key"), strict=True):
        path.chmod(0o600)
        path.rename(lab.dir / name)
    (lab.dir / "users").write_text("node:a secret\n")
    (lab.dir / "users").chmod(0o600)
    docker.await_ready()
    assert sorted(STARTS.values()) == [
        "README.md",
        "docs/cold-start.md",
        "docs/security.md",
        *["docs/tags.md"] * 2,
        "docs/zones.md",
    ]
    for number, line in enumerate(STARTS):
        argv = docker.enter(["sh", "-c", f"cd {shlex.quote(str(lab.dir))} && exec {line}"])
        sidecar = Process(
            f"sidecar {number}",
            argv,
            log_path=Path(lab.dir, f"sidecar{number}.log"),
            env={"PATH": parts.path(Path(sys.executable)), "PYTHONUNBUFFERED": "1"},
        )
        # the metrics are on loopback in one of them, and the registry asks for a password
        sidecar.until(lambda: _is_ready(node), timeout=30, what=f"{line} is ready")
        until(lambda: _leads(node), timeout=20, what="it leads")
        until(lambda: node.dig("spegel.service.consul") == [node.ip], timeout=20, what="Consul finds it healthy")
        assert sidecar.stop(20) == 0, sidecar.tail()
        assert not re.search(r"Traceback|a secret|" + base64.b64encode(b"node:a secret").decode(), sidecar.log())


def _leads(node) -> bool:
    return json.loads(node.consul.kv_get("spegel/leader") or b"{}").get("state") == "held"


def _is_ready(node) -> bool:
    try:
        return node.netns.request("GET", "127.0.0.1", 9090, "/readyz").status == 200
    except OSError:
        return False
