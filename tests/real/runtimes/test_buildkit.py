"""BuildKit's own worker, which the product's own command points at the mirror: `make buildkit`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.buildkit import Buildkit
from lab.cluster import MakeCluster, Node
from lab.image import MakeImage
from lab.neighbours import Neighbours
from lab.process import Failed

pytestmark = pytest.mark.real


def test_a_build_takes_its_base_through_the_mirror(
    cluster: MakeCluster, image: MakeImage, tmp_path: Path, daemons: ExitStack
) -> None:
    made = Neighbours.make(cluster, image, tmp_path)
    lab, whole, partial, upstream = made.lab, made.whole, made.partial, made.upstream
    one, two = lab
    kits: dict[str, Buildkit] = {}
    for node in lab:
        kit = kits[node.name] = Buildkit(node.port, node.dir / "buildkit")
        kit.config.write_text(made.buildkitd_toml)
        node.configure("--runtime=buildkit", "--mirrored-registries=ghcr.io", f"--buildkitd-config={kit.config}")
        daemons.callback(kit.stop)
    made.start_sidecars()

    def built(node: Node, name: str) -> set[str]:
        """The blobs that upstream was asked for."""
        directory = tmp_path / node.name
        directory.mkdir(exist_ok=True)
        (directory / "Dockerfile").write_text(f"FROM {name}\nLABEL built=yes\nCOPY Dockerfile /\n")
        upstream.forget()
        kits[node.name].build(directory)
        return {digest for _, digest in upstream.blob_requests()}

    def restarted(kit: Buildkit) -> None:
        kit.stop()
        kit.start()
        kit.forget()

    kits[two.name].start()
    assert built(two, whole.name) == set()
    assert not [request for request in upstream.requests() if "/manifests/" in request]
    # each blob is asked for by itself, so upstream is asked for the one layer that the neighbour lacks
    kits[one.name].start()
    assert built(one, partial.name) == {partial.amd64.layers[1]}

    # the file is as before, and upstream is asked
    node, kit = two, kits[two.name]
    node.spegel("cleanup", *node.places, f"--buildkitd-config={kit.config}")
    assert kit.config.read_text() == made.buildkitd_toml
    assert [each.name for each in kit.config.parent.iterdir()] == ["buildkitd.toml"]
    restarted(kit)
    assert set(whole.amd64.layers) <= built(node, whole.name)

    # BuildKit names the registry itself, so a mirror with the registry in its path knows no tag
    with_path = made.buildkitd_toml.replace("mirrors = [", f'mirrors = ["{node.ip}:5000/ghcr.io", ')
    kit.config.write_text(with_path + f'[registry."{node.ip}:5000"]\n  http = true\n')
    restarted(kit)
    assert built(node, whole.name) == set()
    assert any(f"/manifests/{whole.tag}" in request for request in upstream.requests())
    upstream.running().kill9()
    kit.forget()
    with pytest.raises(Failed, match="ghcr.io"):
        built(node, whole.name)
