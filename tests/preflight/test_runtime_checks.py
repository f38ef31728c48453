"""Findings about containerd and Docker: through proxies, and of runtimes that nobody pulls with."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from lab.answering import Docker, Server
from lab.certificates import Authority
from lab.ports import free_port

from spegel_consul.endpoints.check import Check, Status
from spegel_consul.preflight import daemon_process, runtime_checks
from spegel_consul.preflight.daemon_process import DaemonProcess
from spegel_consul.preflight.subject import Subject, cri_is_used, docker_is_used
from spegel_consul.runtimes.hosts_toml import Mirroring, fresh
from spegel_consul.runtimes.mirror_targets import Registry, Target

DEBIAN = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
"""
FAR = "http://192.0.2.7:5000"


class Machine:
    """Directories and sockets of a node; ``mirror`` answers as its sidecar does."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.root = root
        self.mirror = self._serve(Server())

    def _serve(self, server: Server) -> Server:
        self._stack.enter_context(server)
        self._stack.callback(server.shutdown)
        return server

    def proxy(self) -> Server:
        return self._serve(Server())

    def other(self, body: bytes = b"<html>", status: int = 200) -> Server:
        """A program that is no sidecar."""
        return self._serve(Server(body, status))

    def docker(self, **info: object) -> None:
        server = self._stack.enter_context(Docker(self.root / "docker.sock", **info))
        self._stack.callback(server.shutdown)

    def hosts(self, runtime: str, url: str, directory: str = "_default") -> None:
        path = self.root / runtime / directory
        path.mkdir(parents=True)
        (path / "hosts.toml").write_text(fresh(Registry("_default"), Mirroring((Target(url),))))

    def subject(self, **given: object) -> Subject:
        places = {
            "containerd_sock": self.root / "containerd.sock",
            "containerd_config": self.root / "config.toml",
            "containerd_hosts": self.root / "containerd",
            "docker_sock": self.root / "docker.sock",
            "docker_hosts": self.root / "docker",
            "kubelet": self.root / "kubelet",
        }
        return Subject("10.0.0.7", 5000, **{**places, **given})  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path, stack)


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


async def test_the_probe_takes_no_proxy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = machine.proxy()
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    machine.docker()
    machine.hosts("docker", machine.mirror.url)
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert checks["docker-hosts"].status is Status.OK
    assert (machine.mirror.paths, proxy.paths) == (["/livez"], [])


@pytest.mark.parametrize("version", ["28.5.2", "26.1.5"])
async def test_docker_behind_a_proxy(machine: Machine, version: str) -> None:
    machine.docker(
        ServerVersion=version,
        HttpProxy="http://me:s3cret@proxy:3128",
        NoProxy="localhost,.lan",
        RegistryConfig={"Mirrors": [f"{FAR}/"]},
    )
    machine.hosts("docker", FAR)
    checks = await runtime_checks.docker_checks(machine.subject())
    check = named(checks)["docker-proxy"]
    assert check.status is Status.FAIL
    assert "NO_PROXY=localhost,.lan,192.0.2.7" in check.fix.splitlines()
    assert "s3cret" not in repr(checks)


@pytest.mark.parametrize(("driver", "status"), [("overlay2", Status.FAIL), ("overlayfs", Status.OK)])
async def test_a_storage_driver_of_the_old_image_store(machine: Machine, driver: str, status: Status) -> None:
    machine.docker(Driver=driver)
    check = named(await runtime_checks.docker_checks(machine.subject()))["docker"]
    assert check.status is status
    assert ("--storage-driver" in check.fix) is (status is Status.FAIL)


async def test_a_registrys_own_address_is_no_mirror(machine: Machine) -> None:
    """A private registry's file names the registry itself, with the authority of its certificate."""
    machine.docker()
    port = machine.mirror.server_port
    machine.hosts("docker", machine.mirror.url, f"127.0.0.1_{port}_")
    machine.hosts("docker", machine.other().url, "harbor.corp")
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert checks["docker-hosts"].status is Status.FAIL
    assert "names a mirror, so the runtime never asks one" in checks["docker-hosts"].says
    assert machine.mirror.paths == []


async def test_another_registrys_host_is_no_mirror_that_failed(machine: Machine) -> None:
    machine.docker(HttpProxy="http://proxy:3128", NoProxy="")
    machine.hosts("docker", machine.other(status=404).url, "corp.example.com")
    machine.hosts("docker", "http://192.0.2.9", "cache.example.com")
    machine.hosts("docker", machine.mirror.url, "docker.io")
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert (checks["docker-hosts"].status, checks["docker-proxy"].status) == (Status.OK, Status.OK)
    assert f"{machine.mirror.url}, the first mirror of docker.io, is alive" in checks["docker-hosts"].says


async def test_a_mirror_that_is_gone_is_found_beside_one_that_is_alive(machine: Machine) -> None:
    machine.docker()
    machine.hosts("docker", machine.mirror.url)
    gone = f"http://127.0.0.1:{free_port()}"
    machine.hosts("docker", gone, "quay.io")
    subject = replace(machine.subject(), registry_port=int(gone.rpartition(":")[2]))
    check = named(await runtime_checks.docker_checks(subject))["docker-hosts"]
    assert check.status is Status.FAIL
    assert f"{gone}, the first mirror of quay.io, does not answer" in check.says


async def test_the_mirror_at_the_runtimes_own_port_is_missed(machine: Machine) -> None:
    """--runtime-addr; the second host of the file is another node."""
    machine.docker()
    machine.hosts("docker", machine.mirror.url)
    gone = f"http://127.0.0.1:{free_port()}"
    (machine.root / "docker/_default/hosts.toml").write_text(f'[host."{gone}"]\n[host."{machine.mirror.url}"]\n')
    subject = machine.subject()
    check = named(await runtime_checks.docker_checks(subject))["docker-hosts"]
    assert check.status is Status.OK, "a host of somebody else's"
    subject = replace(subject, runtime_port=int(gone.rpartition(":")[2]))
    check = named(await runtime_checks.docker_checks(subject))["docker-hosts"]
    assert check.status is Status.FAIL
    assert f"{gone}, the first mirror of all registries, does not answer" in check.says


async def test_directories_that_hide_the_mirror_of_all_registries(machine: Machine) -> None:
    machine.docker()
    machine.hosts("docker", machine.mirror.url)
    machine.hosts("docker", machine.mirror.url, "quay.io")
    machine.hosts("docker", machine.other().url, "ghcr.io")
    for name in ("docker.io", "reg.example.com_5443_", "_backup", "lost+found"):
        (machine.root / "docker" / name).mkdir()
    (machine.root / "docker/docker.io/ca.crt").touch()
    check = named(await runtime_checks.docker_checks(machine.subject()))["docker-hosts"]
    assert check.status is Status.WARN
    assert "not asked for docker.io, ghcr.io, reg.example.com:5443, which have directories of their own" in check.says
    # with those that are mirrored, or the command would restore their files
    assert check.fix.endswith("--mirrored-registries _default,quay.io,docker.io,ghcr.io,reg.example.com:5443")


async def test_a_mirror_that_verifies_its_clients(machine: Machine, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    pair = authority.issue(tmp_path, "node", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.load_verify_locations(authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    machine.mirror.socket = context.wrap_socket(machine.mirror.socket, server_side=True)
    machine.docker()
    machine.hosts("docker", machine.mirror.url.replace("http:", "https:"))
    for given, status in (({"client_pair": pair}, Status.OK), ({}, Status.FAIL)):
        checks = named(await runtime_checks.docker_checks(machine.subject(**given)))
        assert checks["docker-hosts"].status is status, given


async def test_a_new_docker_without_a_file_asks_its_registry_mirrors(machine: Machine) -> None:
    machine.docker(RegistryConfig={"Mirrors": [f"{machine.mirror.url}/"]})
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert checks["docker-hosts"].status is Status.WARN
    assert "for docker.io only" in checks["docker-hosts"].says
    assert (checks["docker-mirrors"].status, checks["docker-proxy"].status) == (Status.OK, Status.OK)
    machine.hosts("docker", machine.other().url, "docker.io")
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert checks["docker-hosts"].status is Status.FAIL
    assert "docker-mirrors" not in checks


async def test_docker_behind_a_proxy_asks_loopback_itself(machine: Machine) -> None:
    machine.docker(HttpProxy="http://proxy:3128", NoProxy="")
    machine.hosts("docker", machine.mirror.url)
    checks = named(await runtime_checks.docker_checks(machine.subject()))
    assert (checks["docker-proxy"].status, checks["docker-hosts"].status) == (Status.OK, Status.OK)


@pytest.mark.parametrize(
    ("version", "referrers", "status", "says"),
    [
        ("28.5.2", True, Status.FAIL, "refuses"),
        ("29.0.4", True, Status.FAIL, "refuses"),
        ("29.1.0-rc.1", False, Status.WARN, "while their registry is down"),
        ("30.0.0", False, Status.WARN, "while their registry is down"),
        ("29.7.2", True, None, ""),
        ("28.5.2", False, None, ""),
        ("dev", False, None, ""),
    ],
)
async def test_the_capability_referrers(
    machine: Machine, version: str, referrers: bool, status: Status | None, says: str
) -> None:
    machine.docker(ServerVersion=version)
    mirroring = Mirroring((Target(machine.mirror.url),), referrers=referrers)
    directory = machine.root / "docker" / "_default"
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(fresh(Registry("_default"), mirroring))
    found = named(await runtime_checks.docker_checks(machine.subject())).get("docker-referrers")
    assert (found.status if found else None) is status
    assert found is None or (says in found.says and found.fix == "spegel-consul configuration --runtime docker")


async def test_containerd_behind_a_proxy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = machine.root / "proc"
    directory.mkdir()
    (directory / "environ").write_bytes(b"HTTP_PROXY=http://me:s3cret@proxy:3128\0no_proxy=10.0.0.0/8\0TOKEN=s3cret\0")
    process = DaemonProcess(directory, ("containerd",))
    monkeypatch.setattr(daemon_process, "of_socket", lambda path, program: process)
    (machine.root / "config.toml").write_text(DEBIAN)
    machine.hosts("containerd", FAR)
    checks = await runtime_checks.containerd_checks(machine.subject())
    check = named(checks)["containerd-proxy"]
    assert check.status is Status.FAIL
    assert "NO_PROXY=10.0.0.0/8,192.0.2.7" in check.fix.splitlines()
    assert "s3cret" not in repr(checks)


async def test_a_node_with_docker_alone(machine: Machine) -> None:
    """Docker's packages bring Debian's containerd, whose CRI nobody asks."""
    (machine.root / "config.toml").write_text(DEBIAN)
    machine.docker(Images=3)
    for runtimes, status in (((), Status.WARN), (("docker",), Status.WARN), (("containerd",), Status.FAIL)):
        subject = machine.subject(runtimes=frozenset(runtimes))
        checks = named(await runtime_checks.containerd_checks(subject))
        for name in ("config-path", "containerd-hosts"):
            assert checks[name].status is status, (name, runtimes)
            assert ("--runtime containerd" in checks[name].says) == (status is Status.WARN)
            assert checks[name].fix


async def test_a_node_with_an_idle_docker(machine: Machine) -> None:
    machine.docker(Images=0)
    (machine.root / "kubelet").mkdir()
    for runtimes, status in (((), Status.WARN), (("containerd",), Status.WARN), (("docker",), Status.FAIL)):
        checks = named(await runtime_checks.docker_checks(machine.subject(runtimes=frozenset(runtimes))))
        assert checks["docker-hosts"].status is status, runtimes


async def test_a_docker_that_does_not_answer_counts_where_it_is_used(machine: Machine) -> None:
    (machine.root / "docker.sock").touch()
    assert [check.status for check in await runtime_checks.docker_checks(machine.subject())] == [Status.FAIL]
    assert await runtime_checks.docker_checks(machine.subject(runtimes=frozenset({"containerd"}))) == []


@pytest.mark.parametrize(
    ("namespaces", "has_docker", "has_kubelet", "runtimes", "used"),
    [
        (["moby", "k8s.io"], True, False, (), True),
        (["moby"], True, False, (), False),
        (["moby"], True, True, (), True),
        ([], True, False, (), False),
        ([], False, False, (), True),
        (None, False, False, (), True),
        (["default", "nomad"], False, False, (), False),
        (["default"], False, False, ("containerd",), True),
        (["k8s.io"], False, True, ("docker",), False),
    ],
)
def test_whether_the_cri_is_used(
    tmp_path: Path,
    namespaces: list[str] | None,
    has_docker: bool,
    has_kubelet: bool,
    runtimes: tuple[str, ...],
    used: bool,
) -> None:
    kubelet = tmp_path if has_kubelet else tmp_path / "absent"
    subject = Subject("10.0.0.7", 5000, runtimes=frozenset(runtimes), kubelet=kubelet)
    assert cri_is_used(subject, namespaces, has_docker=has_docker) is used


def test_whether_docker_is_used(tmp_path: Path) -> None:
    assert docker_is_used(Subject("10.0.0.7", 5000, kubelet=tmp_path / "absent"), 0)
    assert docker_is_used(Subject("10.0.0.7", 5000, kubelet=tmp_path), 1)
    assert not docker_is_used(Subject("10.0.0.7", 5000, kubelet=tmp_path), 0)


async def test_a_mirrors_password_is_not_shown(machine: Machine) -> None:
    machine.docker(ServerVersion="26.1.5", RegistryConfig={"Mirrors": ["http://me:s3cret@127.0.0.1:1"]})
    assert "s3cret" not in repr(await runtime_checks.docker_checks(machine.subject()))


class Daemon:
    """A running containerd of this machine, whose program prints ``dump`` or fails; /proc is imitated."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch, dump: str | None, *words: str) -> None:
        proc = machine.root / "proc"
        (proc / "ns").mkdir(parents=True)
        (proc / "ns/mnt").symlink_to("/proc/self/ns/mnt")
        (proc / "root").symlink_to("/")
        (proc / "cwd").symlink_to(machine.root)
        (proc / "environ").touch()
        (proc / "dump").write_text(dump or "")
        end = f"cat {proc}/dump" if dump is not None else "echo 'containerd: odd key' >&2; exit 1"
        (proc / "exe").write_text(f'#!/bin/sh\necho "$2" > {proc}/asked\n{end}\n')
        (proc / "exe").chmod(0o755)
        process = DaemonProcess(proc, ("containerd", *words))
        monkeypatch.setattr(daemon_process, "of_socket", lambda path, program: process)
        self.asked = proc / "asked"


def dump_of(machine: Machine) -> str:
    return f"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{machine.root}/containerd'\n"


async def test_the_daemons_own_program_is_believed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "other.toml").write_text(DEBIAN)
    daemon = Daemon(machine, monkeypatch, dump_of(machine), "--config", "other.toml")
    checks = named(await runtime_checks.containerd_checks(machine.subject(containerd_config=None)))
    assert checks["config-path"].status is Status.OK
    assert daemon.asked.read_text().strip() == f"{machine.root}/other.toml"


async def test_a_file_that_only_the_daemon_understands(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "config.toml").write_text("version = 9\n")
    Daemon(machine, monkeypatch, dump_of(machine))
    checks = named(await runtime_checks.containerd_checks(machine.subject()))
    assert checks["config-path"].status is Status.OK


async def test_a_program_that_fails_leaves_it_to_the_rules(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "config.toml").write_text(DEBIAN)
    Daemon(machine, monkeypatch, None)
    checks = named(await runtime_checks.containerd_checks(machine.subject()))
    assert (checks["containerd-config"].status, checks["config-path"].status) == (Status.WARN, Status.FAIL)
    assert "containerd: odd key" in checks["containerd-config"].says
    (machine.root / "config.toml").write_text("[")
    checks = named(await runtime_checks.containerd_checks(machine.subject()))
    assert checks["containerd-config"].status is Status.FAIL
    assert "can't be read" in checks["containerd-config"].says


async def test_a_missing_import_is_found_though_the_program_is_silent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.root / "config.toml").write_text('version = 2\nimports = ["gone.toml"]\n')
    Daemon(machine, monkeypatch, dump_of(machine))
    checks = named(await runtime_checks.containerd_checks(machine.subject()))
    assert checks["containerd-config"].status is Status.FAIL
    assert "gone.toml" in checks["containerd-config"].says


async def test_a_daemon_without_a_file_has_no_config_path(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(machine, monkeypatch, dump_of(machine), "--config", "absent.toml")
    checks = named(await runtime_checks.containerd_checks(machine.subject(containerd_config=None)))
    assert checks["config-path"].status is Status.FAIL
    assert checks["config-path"].fix.splitlines()[1].startswith("version = ")
    assert not daemon.asked.exists()
