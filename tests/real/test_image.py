# docker/Dockerfile, built by a real dockerd on a base that stands in for Python's slim image, and run as the job of
# jobs/ runs it: host network, the socket's directory and the content mounted.

"""The product as an image, serving the Docker that runs it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from lab import base_image
from lab.image import MIB
from lab.process import Failed, until

from spegel_consul import __version__

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
IMAGE = f"spegel-consul:{__version__}"


def test_the_image_is_built_and_docker_pulls_through_it(cluster, image) -> None:
    lab = cluster(2, consul=False, containerd=[None, "21"])
    docker = lab[0].add_docker("28")
    neighbour = lab[1].start_sidecar(wait=False, static_bootstrap_peers=f"{lab[1].ip}:5001")
    base = lab.dir / "base.tar"
    base_image.assemble(base, "spegel-consul", "pip", "hatchling")
    docker.await_ready()
    (name,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "docker/Dockerfile").read_text(), re.M)
    changes = [word for change in base_image.CHANGES for word in ("--change", change)]
    docker.docker("import", *changes, base, name, timeout=120)

    context = lab.dir / "context"
    shutil.copytree(ROOT / "spegel_consul", context / "spegel_consul", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, context)
    dockerfile = ROOT / "docker/Dockerfile"
    docker.docker("build", "--network=none", "-t", IMAGE, "-f", dockerfile, context, timeout=180)
    (about,) = json.loads(docker.docker("image", "inspect", IMAGE))
    assert about["Config"]["Labels"]["org.opencontainers.image.version"] == __version__
    assert about["Config"]["Entrypoint"] == ["spegel-consul"]
    assert docker.docker("run", "--rm", "--network=none", IMAGE, "version", timeout=60).startswith(
        f"spegel-consul {__version__}"
    )

    sock, content = docker.containerd_sock, docker.content_path
    common = ["run", "--detach", "--init", "--network=host", f"-v={content}:{content}:ro"]
    flags = [f"--containerd-content-path={content}", "--bootstrap-kind=static"]
    flags += [f"--static-bootstrap-peers={lab[1].ip}:5001", "--containerd-sock=/run/spegel-containerd/containerd.sock"]
    as_root = [f"-v={sock.parent}:/run/spegel-containerd", IMAGE, "registry"]
    mirror = docker.docker(*common, *as_root, *flags, timeout=60).strip()
    # somebody who may use the socket and nothing else: not even its directory, and not the content
    as_guest = [
        f"-v={sock}:/run/spegel-containerd/containerd.sock",
        "--user=65532",
        f"--group-add={sock.stat().st_gid}",
    ]
    others = [f"--{port}-addr=:{number}" for port, number in (("registry", 6000), ("router", 6001), ("metrics", 6002))]
    guest = docker.docker(*common, *as_guest, IMAGE, "registry", *flags, *others, timeout=60).strip()

    def says(port: int) -> bytes:
        try:
            return lab[0].request("/readyz", port=port).body
        except OSError as why:
            return str(why).encode()

    for port in (5000, 6000):
        try:
            until(lambda port=port: says(port).startswith(b"ok"), timeout=60, what=f"port {port} is ready")
        except Failed as why:
            raise Failed(f"{why}: {says(port)!r}") from None
    neighbour.await_ready()
    app = image(layers=[2 * MIB])
    lab[1].containerd.import_image(app.tar)
    docker.mirror(f"http://{lab[0].ip}:5000")
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: lab[0].request(path).status == 200, timeout=20, what="the container finds the neighbour's image")
    docker.pull(app.name)
    assert app.digests <= docker.content()
    # what root's mirror reads from the disk, the guest's reads through containerd
    layer = f"/v2/{app.repository}/blobs/{app.amd64.layers[1]}?ns={app.registry}"
    for port in (5000, 6000):
        assert lab[0].request(layer, port=port).body == app.blob(app.amd64.layers[1]).read_bytes()
    until(
        lambda: json.loads(docker.docker("inspect", mirror))[0]["State"]["Health"]["Status"] == "healthy",
        timeout=30,
        what="Docker says that the mirror is healthy",
    )
    docker.docker("stop", "--time=15", mirror, guest, timeout=40)
    for container in (mirror, guest):
        assert json.loads(docker.docker("inspect", container))[0]["State"]["ExitCode"] == 0
