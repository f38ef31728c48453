# kaniko unpacks the base image over its own root directory, so it runs in one that is made for it.  Its executor is
# named by the environment: there is no package of it to install, so CI does not run this test.

"""A real kaniko builds with the flags that the documentation names: `make kaniko`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from lab.cluster import MakeCluster, Node
from lab.documents import ROOT
from lab.image import MakeImage
from lab.neighbours import Neighbours
from lab.process import run

pytestmark = pytest.mark.real

EXECUTOR = Path(os.environ.get("KANIKO", ""))
_SCRIPT = 'cd "$1" && mount -t proc proc proc && mount --bind /dev/null dev/null && shift && exec chroot . "$@" 2>&1'


def documented(node: Node, upstream: str) -> list[str]:
    """The documented flags, with ``upstream`` as the next one for ghcr.io, which nobody reaches here."""
    page = (ROOT / "docs/buildkit.md").read_text()
    (line,) = re.findall(r'^executor (--registry-map "[^"]+") \\\n  (--insecure-registry \S+)', page, re.M)
    flag, mapped, insecure, mirror = " ".join(line).replace('"', "").replace("10.0.0.7", node.ip).split()
    return [flag, f"{mapped};ghcr.io={upstream}", insecure, mirror, insecure, upstream]


def build(node: Node, name: str, root: Path, flags: list[str]) -> str:
    """Build an image from ``name`` in the directory ``root``; returns the output."""
    for each in ("kaniko", "context", "proc", "dev", "tmp"):
        (root / each).mkdir(parents=True)
    (root / "dev/null").touch()
    shutil.copy(EXECUTOR, root / "kaniko/executor")
    (root / "context/Dockerfile").write_text(f"FROM {name}\nLABEL built=yes\nCOPY Dockerfile /\n")
    argv = ["sh", "-c", _SCRIPT, "sh", root, "/kaniko/executor", "--force", "--context=dir:///context", "--no-push"]
    argv += ["--dockerfile=/context/Dockerfile", "--tar-path=/built.tar", "--destination=built:1", *flags]
    said = run(node.netns.inside(argv, private_mounts=True), timeout=90, env={"HOME": "/kaniko"})
    assert (root / "built.tar").stat().st_size, said
    return said


def test_a_build_takes_its_base_through_the_mirror(cluster: MakeCluster, image: MakeImage, tmp_path: Path) -> None:
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    made.start_sidecars()

    def built(node: Node, name: str, directory: str) -> set[str]:
        """The blobs that upstream was asked for."""
        upstream.forget()
        build(node, name, tmp_path / directory, documented(node, upstream.host))
        return {digest for _, digest in upstream.blob_requests()}

    assert built(two, whole.name, "whole") == set()
    assert not [request for request in upstream.requests() if "/manifests/" in request]
    # it takes an image from one source, so all of it comes from upstream
    assert set(partial.amd64.layers) <= built(one, partial.name, "partial")
    assert two.sidecar.stop() == 0
    assert set(whole.amd64.layers) <= built(two, whole.name, "without the mirror")
