"""Two nodes for clients that take an image from one source: one has it whole, the other lacks a layer of another."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.cluster import Cluster, MakeCluster, Node
from lab.image import MIB, Image, MakeImage
from lab.registry import Registry


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

    def layouts(self) -> tuple[tuple[Node, Path], ...]:
        """Each node with the layout that it serves."""
        one, two = self.lab
        return (one, self.whole.layout), (two, self.lacking)
