"""Findings about podman, CRI-O and BuildKit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.answering import Server
from lab.ports import free_port

from spegel_consul.endpoints.check import Check, Status
from spegel_consul.preflight import daemon_process
from spegel_consul.preflight.clients import client_checks
from spegel_consul.preflight.daemon_process import DaemonProcess
from spegel_consul.preflight.subject import Subject
from spegel_consul.runtimes.clients import installed_clients
from spegel_consul.runtimes.clients.registries_conf import NAME
from spegel_consul.runtimes.configure import plan_buildkitd, plan_registries_conf
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import Registry, Target

HUB = Registry("docker.io")


class Machine:
    """A node, and a sidecar that answers."""

    def __init__(self, root: Path, sidecar: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.containers = root / "containers"
        self.drop_ins = self.containers / "registries.conf.d"
        self.buildkitd = root / "buildkitd.toml"
        self.mirroring = Mirroring((Target(sidecar.url),))
        monkeypatch.setattr(installed_clients, "TRACES", {name: (root / name,) for name in installed_clients.TRACES})

    def configure(self) -> None:
        for plan in (
            plan_registries_conf(self.containers, [HUB], self.mirroring, keep_existing=True),
            plan_buildkitd(self.buildkitd, [HUB], self.mirroring, keep_existing=True),
        ):
            list(plan.directory.write(plan.files))

    async def checks(self, *runtimes: str) -> dict[str, Check]:
        subject = Subject(
            "10.0.0.7",
            5000,
            runtimes=frozenset(runtimes),
            containers_config=self.containers,
            buildkitd_config=self.buildkitd,
        )
        return {check.name: check for check in await client_checks.client_checks(subject)}


@pytest.fixture
def sidecar() -> Iterator[Server]:
    with Server() as server:
        yield server
        server.shutdown()


@pytest.fixture
def machine(tmp_path: Path, sidecar: Server, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, sidecar, monkeypatch)


async def test_nothing_is_said_of_clients_that_are_not_there(machine: Machine) -> None:
    assert await machine.checks() == {}
    machine.drop_ins.mkdir(parents=True)
    (machine.containers / "registries.conf").write_text("not toml = ")
    assert await machine.checks() == {}
    assert await machine.checks("docker") == {}
    assert await client_checks.client_checks(Subject("10.0.0.7", 5000)) == []


async def test_what_configuration_wrote_is_fine(machine: Machine, sidecar: Server) -> None:
    machine.configure()
    for runtimes in ((), ("podman", "buildkit")):
        found = await machine.checks(*runtimes)
        assert set(found) == {"podman-mirrors", "buildkit-mirrors", "buildkit-proxy"}
        assert {check.status for check in found.values()} == {Status.OK}, found
    assert f"{sidecar.url}, the first mirror of docker.io, is alive" in found["podman-mirrors"].says
    assert sidecar.paths == ["/livez"] * 4


@pytest.mark.parametrize("named", [True, False])
async def test_a_client_without_mirrors_fails_only_if_it_is_named(machine: Machine, named: bool) -> None:
    for name in ("podman", "buildkit"):
        (machine.root / name).mkdir()
    found = await machine.checks(*(("podman", "buildkit") if named else ()))
    for name in ("podman", "buildkit"):
        check = found[f"{name}-mirrors"]
        assert check.status is (Status.FAIL if named else Status.WARN)
        assert check.fix == f"spegel-consul configuration --runtime {name}"
        assert ("give --runtime" in check.says) is not named


async def test_a_mirror_that_is_gone_fails_what_was_configured(machine: Machine) -> None:
    machine.mirroring = Mirroring((Target(f"http://127.0.0.1:{free_port()}"),))
    machine.configure()
    found = await machine.checks()
    assert {name for name, check in found.items() if check.status is Status.FAIL} == {
        "podman-mirrors",
        "buildkit-mirrors",
    }
    assert "does not answer" in found["podman-mirrors"].says


async def test_files_that_their_programs_refuse(machine: Machine) -> None:
    machine.configure()
    (machine.drop_ins / "10-old.conf").write_text('[registries.search]\nregistries = ["docker.io"]\n')
    machine.buildkitd.write_text(machine.buildkitd.read_text() + "[registry")
    found = await machine.checks("podman", "buildkit")
    assert found["podman-mirrors"].status is found["buildkit-mirrors"].status is Status.FAIL
    assert "10-old.conf can't be used: it is of version 1" in found["podman-mirrors"].says
    assert "refuse every pull" in found["podman-mirrors"].says
    assert "it is not TOML" in found["buildkit-mirrors"].says
    (machine.drop_ins / "10-old.conf").unlink()
    (machine.drop_ins / "10-old.conf").mkdir()
    assert (await machine.checks())["podman-mirrors"].status is Status.OK
    (machine.drop_ins / "20-link.conf").symlink_to("/dev/zero")
    assert (await machine.checks("crio"))["crio-mirrors"].status is Status.FAIL


async def test_copies_that_are_out_of_date_or_without_effect(machine: Machine) -> None:
    main = machine.containers / "registries.conf"
    machine.containers.mkdir()
    main.write_text('[[registry]]\nlocation = "docker.io"\n')
    machine.configure()
    assert "podman-copies" not in await machine.checks()
    main.write_text('[[registry]]\nlocation = "docker.io"\nblocked = true\n')
    check = (await machine.checks())["podman-copies"]
    assert check.status is Status.WARN
    assert f"docker.io in {main} was changed" in check.says
    assert check.fix == "spegel-consul configuration --runtime podman"
    late = machine.drop_ins / "zz.conf"
    late.write_text('[[registry]]\nlocation = "docker.io"\n')
    check = (await machine.checks())["podman-copies"]
    assert f"{late} has a table of docker.io and is read after" in check.says
    assert check.fix == f"# rename zz.conf to a name before {NAME}"


async def test_http_that_was_allowed_in_the_copy_is_no_difference(machine: Machine) -> None:
    machine.containers.mkdir()
    (machine.containers / "registries.conf").write_text('[[registry]]\nlocation = "one.lan"\n')
    plan = plan_registries_conf(
        machine.containers, [Registry("one.lan", "http://one.lan")], machine.mirroring, keep_existing=True
    )
    list(plan.directory.write(plan.files))
    assert set(await machine.checks()) == {"podman-mirrors"}


async def test_a_registry_in_the_path_of_buildkits_mirror(machine: Machine, sidecar: Server) -> None:
    host = sidecar.url.partition("://")[2]
    machine.buildkitd.write_text(f'[registry."docker.io"]\nmirrors = ["{host}/docker.io"]\n')
    check = (await machine.checks("buildkit"))["buildkit-mirrors"]
    assert check.status is Status.WARN
    assert f"http://{host}/docker.io has docker.io in its path" in check.says


async def test_another_mirror_is_none_that_failed(machine: Machine, sidecar: Server) -> None:
    """Docker Hub has a cache of its own, and another registry the sidecar."""
    with Server(b"<html>", 404) as cache:
        machine.containers.mkdir()
        texts = [
            f'[[registry]]\nlocation = "{registry}"\n[[registry.mirror]]\nlocation = "{url[7:]}"\ninsecure = true\n'
            for registry, url in (("docker.io", cache.url), ("quay.io", sidecar.url))
        ]
        (machine.containers / "registries.conf").write_text("".join(texts))
        machine.buildkitd.write_text(
            f'[registry."docker.io"]\nmirrors = ["{cache.url[7:]}"]\n'
            f'[registry."quay.io"]\nmirrors = ["{sidecar.url[7:]}"]\n'
            + "".join(f'[registry."{url[7:]}"]\nhttp = true\n' for url in (cache.url, sidecar.url))
        )
        found = await machine.checks("podman", "buildkit")
        cache.shutdown()
    for name in ("podman-mirrors", "buildkit-mirrors"):
        assert found[name].status is Status.OK, found[name]
        assert f"{sidecar.url}, the first mirror of quay.io, is alive" in found[name].says


async def test_crio_and_buildkit_behind_a_proxy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror at another address than loopback needs an exception, and the proxy's password is not shown."""
    process = machine.root / "process"
    process.mkdir()
    (process / "environ").write_bytes(b"HTTP_PROXY=http://me:s3cret@proxy:3128\0")
    monkeypatch.setattr(daemon_process, "of_socket", lambda _path, name: DaemonProcess(process, (name,)))
    machine.mirroring = Mirroring((Target("http://192.0.2.7:5000"),))
    machine.configure()
    found = await machine.checks("crio", "buildkit")
    for name in ("crio", "buildkit"):
        check = found[f"{name}-proxy"]
        assert check.status is Status.FAIL
        assert "NO_PROXY=192.0.2.7" in check.fix
    assert "s3cret" not in str(found)
