# CI runners run a Docker inside a container.  It reads its own /etc/docker, so giving it the host's certs.d is all that
# it needs; the mirror's address in there is that of the host.  The image of the inner one is made of what is here: its
# programs are the host's, mounted read-only.

"""A Docker in a container pulls through the sidecar of its host."""

from __future__ import annotations

import json

import pytest
from lab import parts
from lab.cluster import MakeCluster
from lab.image import MIB, MakeImage
from lab.process import Failed, until

pytestmark = pytest.mark.real


def test_the_inner_docker_pulls_what_only_a_neighbour_has(cluster: MakeCluster, image: MakeImage) -> None:
    lab = cluster(2, consul=False, containerd=["21", None])
    owner, host = lab
    base, wanted = image(layers=[MIB]), image("ghcr.io/team/tool:v2", layers=[MIB], seed=2)
    for app in (base, wanted):
        owner.containerd.import_image(app.tar)
    docker = host.add_docker("28")
    docker.await_ready()
    for node in lab:
        node.start_sidecar(static_bootstrap_peers=f"{owner.ip}:5001,{host.ip}:5001")
    for app in (base, wanted):
        path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
        until(lambda path=path: host.request(path).status == 200, timeout=20, what=f"{path} is found")
    host.configure("--runtime=docker")
    docker.pull(base.name)

    inner = host.dir / "inner"
    for name in ("data", "run"):
        (inner / name).mkdir(parents=True)
    options = {
        "data-root": "/inner/data",
        "exec-root": "/inner/run/exec",
        "pidfile": "/inner/run/docker.pid",
        "hosts": ["unix:///inner/run/docker.sock"],
        "iptables": False,
        "ip6tables": False,
        "bridge": "none",
    }
    (inner / "daemon.json").write_text(json.dumps(options))
    dockerd, client = parts.dockerd("28"), parts.docker("28")
    path = parts.path(parts.containerd("21"), parts.runc(), dockerd, client)
    docker.docker(
        *("run", "--detach", "--name=inner", "--privileged", "--network=host", "--env", f"PATH={path}:/bin"),
        *("--volume", f"{docker.certs_d}:/etc/docker/certs.d:ro", "--volume", f"{inner}:/inner"),
        *(word for where in ("/usr", "/lib", "/lib64", parts.ROOT) for word in ("--volume", f"{where}:{where}:ro")),
        *(base.name, dockerd, "--config-file", "/inner/daemon.json", "--feature", "containerd-snapshotter"),
        timeout=60,
    )
    ask = [client, "--host", "unix:///inner/run/docker.sock"]
    try:
        until(lambda: succeeds(docker.docker, "exec", "inner", *ask, "version"), timeout=40, what="the inner one is up")
        docker.docker("exec", "inner", *ask, "pull", wanted.name, timeout=60)
        assert "ghcr.io/team/tool" in docker.docker("exec", "inner", *ask, "images")
        assert not wanted.digests <= docker.content()
    except Failed as exc:
        raise Failed(f"{exc}\n{docker.docker('logs', '--tail=30', 'inner')}") from None
    finally:
        docker.docker("rm", "--force", "inner", timeout=60)


def succeeds(command, *words) -> bool:
    try:
        command(*words)
    except Failed:
        return False
    return True
