# Two machines, and the job with the values that the pages give its variables: encryption, passwords, more flags, and
# the one with a bridge network and a port of its own for the runtimes.

"""The jobs' variables, and the bridge network, on a real Nomad."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.consul import ConsulOptions
from lab.image import MIB, Image, build
from lab.process import until

from .agent import Machine
from .test_pages import SERVICES, commands

CONNECT = ConsulOptions(hcl="connect { enabled = true }\n")
DOCKER = "-var-file=vars/docker.hcl"
UPDATED = 120
"""Seconds for an update of both nodes, one after the other, with 15 s between them."""


def test_updates_encrypt_and_add_a_password(machines, top: Path, record_property, tmp_path) -> None:
    first, second = made = machines(2, consul=CONNECT)
    jobs = top / "jobs"
    first.shell(f"nomad job run {DOCKER} spegel.nomad.hcl", jobs, 240)
    await_all(made, "the first run")
    assert sorted(first.node.dig("spegel.service.consul")) == sorted(machine.node.ip for machine in made)
    assert {plain(first, second).status, plain(second, first).status} == {200}

    before, require = commands("docs/security.md", "nomad job run")
    for number, line in enumerate((before, require)):
        began = time.monotonic()
        updated(made, line, jobs)
        record_property("table", ("on a real Nomad", ["", "seconds"], [f"{line}: two nodes", f"{spent(began):.0f}"]))
        app = build(tmp_path / f"app{number}", f"docker.io/library/app{number}:v1", [MIB], seed=number)
        pulled(app, first, second)
    # another machine's plain text is served no content any more, and the check still is
    assert plain(first, second).status == 403
    assert first.node.request("/readyz", to=second.node).status == 200

    # a password, in a file of the nodes that the task sees, and a flag that no variable of the job has
    for machine in made:
        machine.shell("mkdir -p /etc/spegel && umask 077 && echo 'node:secret' > /etc/spegel/users")
    flags = """'extra_args=["--basic-auth-file=/etc/spegel/users","--verify-first=all"]'"""
    more = f"-var secrets_dir=/etc/spegel -var {flags} -var configure=false"
    updated(made, f"nomad job run {DOCKER} {more} spegel.nomad.hcl", jobs)
    assert plain(first, first).status == 401
    secret = {"Authorization": f"Basic {base64.b64encode(b'node:secret').decode()}"}
    until(lambda: plain(first, first, secret).status == 200, timeout=20, what="the password opens")


def test_the_bridge_job_with_encryption_and_a_port_for_runtimes(
    machines, top: Path, record_property, tmp_path: Path
) -> None:
    first, second = made = machines(2, consul=CONNECT)
    jobs, began = top / "jobs", time.monotonic()
    values = f"{DOCKER} -var peer_tls=require -var runtime_port=5002"
    first.shell(f"nomad job run {values} spegel-bridge.nomad.hcl", jobs, 240)
    await_all(made, "the bridge job")
    for machine in made:
        for name in SERVICES:
            addresses = {each["Service"]["Address"] for each in machine.node.consul.instances(name)}
            assert addresses == {each.node.ip for each in made}, "the hosts', none of the bridge's"
    first.shell("nomad job run -var mirror_targets=http://127.0.0.1:5002 configure.nomad.hcl", jobs, 120)
    for machine in made:
        toml = machine.docker.certs_d / "_default/hosts.toml"
        until(lambda toml=toml: toml.exists() and "127.0.0.1:5002" in toml.read_text(), timeout=60, what="configured")
    app = build(tmp_path / "app", "docker.io/library/app:v1", [8 * MIB])
    pulled(app, first, second, port=5002)
    # nobody but the own runtime reaches that port, and without a certificate nobody the content of the other
    assert plain(first, second).status == 403
    with pytest.raises(OSError, match="refused"):
        second.node.request("/readyz", to=first.node, port=5002)
    row = ["the bridge job with peer_tls=require, until a pull from the other node", f"{spent(began):.0f}"]
    record_property("table", ("on a real Nomad", ["", "seconds"], row))


def await_all(made: list[Machine], what: str, timeout: float = 90) -> None:
    """Wait until each node has one healthy instance of each service, and somebody leads."""
    consul = made[0].node.consul
    ips = sorted(machine.node.ip for machine in made)

    def whole() -> bool:
        found = [sorted(each["Service"]["Address"] for each in consul.instances(name)) for name in SERVICES]
        return all(each == ips for each in found) and b'"held"' in (consul.kv_get("spegel/leader") or b"").replace(
            b" ", b""
        )

    until(whole, timeout=timeout, what=f"{what}: every node is ready, and one leads")


def updated(made: list[Machine], line: str, where: Path) -> None:
    """Run an update; return when the new version runs on each node and is ready."""
    first = made[0]
    before = versions(first)
    first.shell(line.partition("  #")[0], where, 240)
    until(lambda: newer(first, before, len(made)), timeout=UPDATED, what=f"{line}: all are updated")
    await_all(made, line)


def versions(machine: Machine) -> int:
    return max(each["JobVersion"] for each in machine.running("spegel").values())


def newer(machine: Machine, before: int, count: int) -> bool:
    running = machine.running("spegel").values()
    return len(running) == count and all(each["JobVersion"] > before for each in running)


def pulled(app: Image, owner: Machine, other: Machine, port: int = 5000) -> None:
    """``other`` pulls what only ``owner`` has; no registry can be reached."""
    owner.docker.docker("load", "-i", app.tar)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    found: Callable[[], bool] = lambda: (  # noqa: E731
        other.node.netns.request("GET", "127.0.0.1", port, path).status == 200
    )
    until(found, timeout=40, what="the other one's mirror finds it")
    other.docker.pull(app.name)
    assert app.digests <= other.docker.content()


def plain(one: Machine, other: Machine, headers: dict[str, str] | None = None):
    """What a machine without a certificate is answered when it asks for content."""
    return one.node.request("/v2/", to=other.node, headers=headers)


def spent(began: float) -> float:
    return time.monotonic() - began
