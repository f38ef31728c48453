# One ring of three real sidecars with a real Consul serves all tests here: what is tested is what people see of it, and
# starting it takes longer than looking at it.  n0 has an image that the others have not.

"""A ring to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from lab import parts
from lab.cluster import Cluster, Node
from lab.image import MIB, Image, build
from lab.netns import Response
from lab.process import until
from lab.run_dir import RunDir

METRICS = 9090


@dataclass
class Ring:
    """The cluster, the image that n0 has, and how to ask."""

    lab: Cluster
    image: Image

    def __getitem__(self, index: int) -> Node:
        return self.lab[index]

    def get(self, path: str, node: int = 0, *, to: int | None = None, **options: Any) -> Response:
        target = self.lab[node if to is None else to]
        return self.lab[node].request(path, to=target, port=METRICS, timeout=30, **options)

    def json(self, path: str, node: int = 0, **options: Any) -> Any:
        response = self.get(path, node, **options)
        assert response.status == 200, response.body
        return json.loads(response.body)

    def pull(self, digest: str, node: int = 1) -> Response:
        """Ask the mirror of a node for a blob of the image."""
        path = f"/v2/{self.image.repository}/blobs/{digest}?ns={self.image.registry}"
        return self.lab[node].request(path, timeout=30)


@pytest.fixture(scope="session")
def ring() -> Iterator[Ring]:
    parts.check()
    with RunDir() as images:
        image = build(images.path / "app", "docker.io/library/app:v1", [24 * MIB, MIB, 100])
        empty = images.path / "empty"
        empty.mkdir()
        (empty / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (empty / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        with Cluster(3, containerd=None) as lab:
            for node in lab:
                layout = image.layout if node.index == 0 else empty
                node.start_sidecar(wait=False, layout_path=layout, log_level="info")
            made = Ring(lab, image)
            for node in lab:
                node.sidecar.await_ready()
            for node in lab:
                until(
                    lambda node=node: in_step(made.json("/api/status", node.index)),
                    timeout=30,
                    what=f"{node} knows the ring and the catalog knows all",
                )
            for index in (1, 2):
                until(
                    lambda index=index: made.json("/api/peers", index)[0]["keys"],
                    timeout=10,
                    what=f"n{index} was told what n0 has",
                )
            yield made


def in_step(status: dict[str, Any]) -> bool:
    ring = status["ring"]
    return bool(
        ring["members"] == 2
        and ring["catalog"] == 3
        and not ring["missing"]
        and ring["unannounced"] == 0
        and status["leader"]["peer_id"]
        and not status["warnings"]
    )
