"""Two nodes for clients that take an image from one source: one has it whole, the other lacks a layer of another."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.cluster import Cluster, MakeCluster
from lab.image import MIB, Image, MakeImage
from lab.process import until
from lab.registry import Registry

_REGISTRIES = """
[[registry]]
prefix = "ghcr.io"
location = "{upstream}"
insecure = true
"""
_BUILDKITD = """\
debug = true

[registry."ghcr.io"]
  mirrors = ["{upstream}"] # in place of ghcr.io, which nobody reaches here

[registry."{upstream}"]
  http = true
"""


@dataclass(frozen=True)
class Neighbours:
    """``whole`` is at the first node of ``lab``; ``partial`` is at the second without its second layer."""

    lab: Cluster
    whole: Image
    partial: Image
    lacking: Path
    upstream: Registry

    @classmethod
    def make(cls, cluster: MakeCluster, image: MakeImage, directory: Path) -> Neighbours:
        """Neighbours whose sidecars are not started; ``upstream`` has both images."""
        lab = cluster(2, consul=False, containerd=None)
        whole = image("ghcr.io/org/whole:v1", layers=[MIB, MIB], seed=3)
        partial = image("ghcr.io/org/partial:v1", layers=[MIB, MIB], seed=4)
        lacking = directory / "lacking"
        shutil.copytree(partial.layout, lacking)
        (lacking / "blobs" / partial.amd64.layers[1].replace(":", "/")).unlink()
        upstream = lab.start_registry()
        for each in (whole, partial):
            upstream.push(each)
        return cls(lab, whole, partial, lacking, upstream)

    @property
    def registries_conf(self) -> str:
        """A user's own registries.conf, with ``upstream`` in place of ghcr.io."""
        return _REGISTRIES.format(upstream=self.upstream.host)

    @property
    def buildkitd_toml(self) -> str:
        """A user's own buildkitd.toml, with ``upstream`` in place of ghcr.io."""
        return _BUILDKITD.format(upstream=self.upstream.host)

    def start_sidecars(self) -> None:
        """Start a sidecar on each node, and wait until each finds what only the other has."""
        one, two = self.lab
        for node, layout in ((one, self.whole.layout), (two, self.lacking)):
            node.start_sidecar(wait=False, layout_path=layout, static_bootstrap_peers=f"{one.ip}:5001,{two.ip}:5001")
        for node in self.lab:
            node.sidecar.await_ready()
        for node, digest in ((two, self.whole.amd64.layers[1]), (one, self.partial.amd64.layers[0])):
            path = f"/v2/org/app/blobs/{digest}"
            until(lambda node=node, path=path: node.request(path).status == 200, timeout=20, what=f"{node} finds it")


def content(root: Path) -> dict[str, bytes]:
    """The files below ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
