# docker/Dockerfile, built by a real dockerd on a base that stands in for Python's slim image, and run by the commands
# of docker/README.md as they are written: host network, the socket's directory and the content mounted.

"""The product as an image, serving the Docker that runs it."""

from __future__ import annotations

import json
import re

import pytest
from lab import documents, parts, product
from lab.image import MIB
from lab.process import Failed, run, until
from lab.product import IMAGE

from spegel_consul import __version__

pytestmark = pytest.mark.real


def test_the_image_is_built_and_docker_pulls_through_it(cluster, image) -> None:
    lines = [line for line in documents.lines("docker/README.md") if line.startswith("docker run ")]
    # the lab's Docker and its containerd have the paths of an installation, and those of the system's containerd too
    with_the_systems, as_root, points, restores, as_idle = lines
    lab = cluster(2, containerd=[None, "21"])
    docker = lab[0].add_docker("28", installed=True)
    neighbour = lab[1].start_sidecar(wait=False)
    product.build(docker, lab.dir)
    (about,) = json.loads(docker.docker("image", "inspect", IMAGE))
    assert about["Config"]["Labels"]["org.opencontainers.image.version"] == __version__
    assert about["Config"]["Entrypoint"] == ["spegel-consul"]
    assert docker.docker("run", "--rm", "--network=none", IMAGE, "version", timeout=60).startswith(
        f"spegel-consul {__version__}"
    )
    neighbour.await_ready()
    app = image(layers=[2 * MIB])
    lab[1].containerd.import_image(app.tar)
    layer = f"/v2/{app.repository}/blobs/{app.amd64.layers[1]}?ns={app.registry}"

    def says() -> bytes:
        try:
            return lab[0].request("/readyz").body
        except OSError as why:
            return str(why).encode()

    def shell(command: str) -> str:
        return run(
            docker.enter(["sh", "-c", command]), timeout=60, env={"PATH": parts.path(parts.docker("28"))}
        ).strip()

    def start(command: str) -> str:
        container = shell(command)
        try:
            until(lambda: says().startswith(b"ok"), timeout=60, what="the mirror is ready")
        except Failed as why:
            raise Failed(f"{why}: {says()!r}\n{docker.docker('logs', container)}") from None
        return container

    def stop(container: str) -> None:
        docker.docker("stop", "--time=15", container, timeout=40)
        (state,) = json.loads(docker.docker("inspect", container))
        assert state["State"]["ExitCode"] == 0
        docker.docker("rm", container)

    store, containerd = re.findall(r"^docker info -f .*", (documents.ROOT / "docs/docker.md").read_text(), re.M)
    assert "io.containerd.snapshotter.v1" in shell(store)
    assert shell(containerd) == "/run/docker/containerd/containerd.sock"

    shell(points)
    written = docker.certs_d / "_default/hosts.toml"
    assert '[host."http://127.0.0.1:5000"]' in written.read_text()
    shell(restores)
    assert not written.exists()

    app_of_docker = docker.docker("image", "inspect", "--format={{.Id}}", IMAGE).strip()
    system = start(with_the_systems)
    assert lab[0].request(f"/v2/{IMAGE.partition(':')[0]}/manifests/{app_of_docker}").status == 200
    assert docker.docker("exec", system, "spegel-consul", "peers")
    stop(system)
    mirror = start(as_root)
    docker.mirror(f"http://{lab[0].ip}:5000")
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: lab[0].request(path).status == 200, timeout=20, what="the container finds the neighbour's image")
    docker.pull(app.name)
    assert app.digests <= docker.content()
    until(
        lambda: json.loads(docker.docker("inspect", mirror))[0]["State"]["Health"]["Status"] == "healthy",
        timeout=30,
        what="Docker says that the mirror is healthy",
    )
    # what root's mirror reads from the disk, the guest's reads through containerd
    assert neighbour.stop() == 0
    assert lab[0].request(layer).body == app.blob(app.amd64.layers[1]).read_bytes()
    stop(mirror)
    idle = start(as_idle)
    assert json.loads(docker.docker("inspect", idle))[0]["Config"]["User"] == "65532"
    assert lab[0].request(layer).body == app.blob(app.amd64.layers[1]).read_bytes()
    stop(idle)
