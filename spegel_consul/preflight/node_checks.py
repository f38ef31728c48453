"""The checks of preflight: whether this node is set up for a mirror.

Each group of checks asks one part of the machine, in a thread if the call may block. Groups run at the same time, and
an unexpected failure of a group becomes a warning of that group alone. A new check belongs here, in the group of its
part, or as a new group in ``run``.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import tomllib
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.disk import foreign_files
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints import dial_back
from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.http.peer_tls import Encryption, PeerTls
from spegel_consul.preflight import consul_checks, containerd_config
from spegel_consul.preflight.consul_checks import LEADER_KEY
from spegel_consul.preflight.containerd_config import CriSettings
from spegel_consul.preflight.interfaces import in_container, interface_of
from spegel_consul.runtimes import docker
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable
from spegel_consul.store.containerd.grpc_client import ContainerdClient

_PROBE_TIMEOUT = 2.0
# only the names that Docker generates, because administrators name bridges of real networks br-lan and the like
_DOCKER_BRIDGE = re.compile(r"docker0|br-[0-9a-f]{12}")
_OTHER_BRIDGES = ("docker", "virbr", "cni", "nomad", "podman")


@dataclass(frozen=True, slots=True)
class Subject:
    """The parts to check; None leaves a part out."""

    address: str
    registry_port: int
    bound: str = ""
    containerd_sock: Path | None = None
    namespaces: tuple[str, ...] = ()
    content_path: Path | None = None
    containerd_config: Path | None = None
    containerd_hosts: Path | None = None
    docker_sock: Path | None = None
    docker_hosts: Path | None = None
    consul: ConsulSettings | None = None
    leader_key: str = LEADER_KEY
    peer: dial_back.Peer | None = None
    tls: bool = False
    """Whether the nodes' registries speak TLS and nothing else."""
    peer_tls: Encryption | None = None
    certificates: PeerTls | None = None
    """Those of ``peer_tls``, if the sidecar runs; None: Consul is asked for one."""
    has_runtime_address: bool = False


async def run(subject: Subject) -> list[Check]:
    """Run all checks. Returns them in a fixed order, the address first. Takes some seconds at most."""
    groups: list[tuple[str, Callable[[Subject], Awaitable[list[Check]]]]] = [
        ("address", _address),
        ("containerd", _containerd),
        ("docker", _docker),
        ("consul", lambda subject: consul_checks.checks_of(subject.consul, subject.leader_key)),
        ("dial-back", _certificate_and_dial_back),
    ]
    found: list[list[Check]] = [[] for _ in groups]

    async def check(number: int) -> None:
        name, group = groups[number]
        try:
            found[number] = await group(subject)
        except Exception as exc:
            found[number] = [warn(name, f"could not be checked: {exc!r}")]

    async with trio.open_nursery() as nursery:
        for number in range(len(groups)):
            nursery.start_soon(check, number)
    return [check for checks in found for check in checks]


def address_check(address: str, bound: str) -> Check:
    """Whether peers can reach ``address``. ``bound``: the host that the registry listens on."""
    name = "address"
    parsed = ipaddress.ip_address(address)
    fix = "--advertise-addr <this machine's address in the cluster>"
    if parsed.is_loopback:
        if bound:
            return warn(name, f"{address} is loopback: only nodes on this very machine can use it", fix)
        return fail(name, f"{address} is loopback: to another node it means itself", fix, fatal=True)
    interface = interface_of(address)
    if interface is not None and _DOCKER_BRIDGE.fullmatch(interface):
        says = f"{address} belongs to {interface}, a bridge of this machine's containers: no other machine reaches it"
        return fail(name, says, fix, fatal=True)
    if interface is not None and interface.startswith(_OTHER_BRIDGES):
        says = f"{address} belongs to {interface}: no other machine reaches it if that is a bridge of this machine"
        return warn(name, says, fix)
    if in_container() and parsed in ipaddress.ip_network("172.17.0.0/16"):
        says = f"{address} is an address of Docker's bridge network: nodes on other machines can't reach it"
        return fail(name, says, f'network_mode = "host"\n# or\n{fix}')
    return ok(name, f"peers are told {address}" + (f", of {interface}" if interface else ""))


async def _address(subject: Subject) -> list[Check]:
    await trio.lowlevel.checkpoint()
    checks = [address_check(subject.address, subject.bound)]
    if subject.peer_tls is not None:
        from spegel_consul.preflight.certificate_checks import runtime_check  # here, because most nodes need none

        own = runtime_check(subject.address, subject.peer_tls, has_own_address=subject.has_runtime_address)
        checks += [own] if own is not None else []
    return checks


async def _containerd(subject: Subject) -> list[Check]:
    if subject.containerd_sock is None:
        return []
    checks: list[Check] = []
    version = ""
    try:
        async with ContainerdClient(subject.containerd_sock, "default", deadline=5.0) as client:
            version = await client.version()
            existing = await client.namespaces()
            root = subject.content_path or await client.content_root()
    except ContainerdUnavailable as exc:
        checks.append(fail("containerd", str(exc)))
    else:
        checks.append(ok("containerd", f"{version} answers at {subject.containerd_sock}"))
        checks.append(_namespaces(subject.namespaces, existing))
        checks.append(await in_thread(lambda: _content(root)))
    if subject.containerd_config is not None and subject.containerd_hosts is not None:
        if not await trio.Path(subject.containerd_config).exists():
            says = f"{subject.containerd_config} does not exist, so the config_path of the CRI is not known"
            return [*checks, warn("config-path", says, "# give its path\n--containerd-config /path/config.toml")]
        try:
            document = await in_thread(partial(containerd_config.load, subject.containerd_config))
        except containerd_config.Unreadable as exc:
            return [*checks, fail("containerd-config", str(exc))]
        settings = CriSettings.of(document)
        checks += containerd_config.checks_of(settings, version, subject.containerd_hosts, subject.containerd_config)
        if settings.enabled:
            checks.append(await in_thread(partial(_hosts, "containerd", subject.containerd_hosts)))
    return checks


def _namespaces(wanted: tuple[str, ...], existing: tuple[str, ...]) -> Check:
    missing = [name for name in wanted if name not in existing]
    if len(missing) < len(wanted):
        return ok("namespace", f"{', '.join(name for name in wanted if name in existing)} is there")
    return warn(
        "namespace",
        f"{', '.join(missing)} is not there yet (there are: {', '.join(existing) or 'none'}):"
        " it appears with the first image, unless the name is wrong",
        "\n".join(f"--containerd-namespace {name}" for name in existing),
    )


def _content(root: Path | None) -> Check:
    name = "content"
    if root is None:
        return warn(name, "containerd does not tell its content path: blobs are read through its API, which is slower")
    try:
        next((root / "blobs").iterdir(), None)
    except OSError as exc:
        return warn(
            name,
            f"{root} can't be read ({exc.strerror}): blobs are read through its API, which is slower",
            f"mount {root} read-only at the same place, or give --containerd-content-path",
        )
    return ok(name, f"{root} can be read")


async def _docker(subject: Subject) -> list[Check]:
    if subject.docker_sock is None or not await trio.Path(subject.docker_sock).exists():
        return []
    try:
        found = await in_thread(partial(docker.ask, subject.docker_sock))
    except docker.NoDocker as exc:
        return [fail("docker", str(exc))]
    checks = [_image_store(found)]
    if found.reads_hosts and subject.docker_hosts is not None:
        checks.append(await in_thread(partial(_hosts, "docker", subject.docker_hosts)))
    elif found.mirrors:
        checks.append(await in_thread(partial(_probed, "docker-mirrors", found.mirrors[0], "docker.io")))
    else:
        fix = "spegel-consul configuration --runtime docker-daemon"
        checks.append(fail("docker-mirrors", "Docker has no registry-mirrors, so it never asks one", fix))
    return checks


def _image_store(found: docker.Docker) -> Check:
    if not found.image_store:
        return fail(
            "docker",
            f"Docker {found.version} keeps images in its old store: this node pulls from peers but serves none",
            '# /etc/docker/daemon.json, then restart Docker\n"features": {"containerd-snapshotter": true}',
        )
    if found.reads_hosts:
        return ok("docker", f"{found.version} with the containerd image store reads hosts.toml, for all registries")
    return warn("docker", f"{found.version} asks mirrors for docker.io only; from 28 on it does for all registries")


def _hosts(runtime: str, base: Path) -> Check:
    """Whether the hosts.toml files of a runtime name a mirror that answers."""
    name = f"{runtime}-hosts"
    fix = f"spegel-consul configuration --runtime {runtime}"
    found = sorted(base.glob("*/hosts.toml")) if base.is_dir() else []
    found = [file for file in found if file.parent.name != "_backup"]
    # _default first, because it is for most registries
    for file in sorted(found, key=lambda file: (file.parent.name != "_default", file)):
        try:
            hosts = list(tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode()).get("host", {}))
        except (OSError, ValueError) as exc:
            return fail(name, f"{file} can't be read: {getattr(exc, 'strerror', None) or exc}")
        if hosts:
            return _probed(name, hosts[0], file.parent.name)
    return fail(name, f"no hosts.toml in {base} names a mirror, so the runtime never asks one", fix)


def _probed(name: str, url: str, registry: str) -> Check:
    of = "all registries" if registry == "_default" else registry
    if not url.startswith(("http://", "https://")):
        return fail(name, f"the mirror {url!r} of {of} is not a URL")
    try:
        # unverified, because the runtime has authorities of its own for the mirror's certificate
        context = ssl._create_unverified_context()  # noqa: S323
        probe = f"{url.rstrip('/')}/livez"  # http or https, see above
        with urllib.request.urlopen(probe, timeout=_PROBE_TIMEOUT, context=context) as answer:  # noqa: S310
            answer.read(16)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        says = f"{url}, the first mirror of {of}, does not answer: {reason}"
        return fail(name, says, "start the sidecar there, or write the files anew: spegel-consul configuration")
    return ok(name, f"{url}, the first mirror of {of}, is alive")


async def _certificate_and_dial_back(subject: Subject) -> list[Check]:
    """The certificate comes first, because nodes that require TLS are asked with it."""
    checks: list[Check] = []
    contexts: tuple[ssl.SSLContext | None, ...] = (dial_back.unverified(),) if subject.tls else (None,)
    if subject.peer_tls is not None:
        if subject.certificates is not None:
            context = subject.certificates.client()
        elif subject.consul is not None:
            from spegel_consul.preflight.certificate_checks import certificate_of_consul

            check, context = await certificate_of_consul(subject.consul)
            checks += [check] if check is not None else []
        else:
            context = dial_back.unverified()
        if context is not None:
            contexts = (context,) if subject.peer_tls is Encryption.REQUIRE else (context, None)
        elif subject.peer_tls is Encryption.REQUIRE:
            return [*checks, warn("dial-back", "not checked: this node has no certificate for its peers")]
    return checks + await _dial_back(subject, contexts)


async def _dial_back(subject: Subject, contexts: tuple[ssl.SSLContext | None, ...]) -> list[Check]:
    peer = subject.peer
    if peer is None and subject.consul is not None:
        try:
            async with ConsulClient(subject.consul) as client:
                _, instances = await client.health_service("spegel", near="_agent")
        except (ConsulError, ValueError):
            return []  # the check of Consul reports it
        others = [one for one in instances if (one.address, one.port) != (subject.address, subject.registry_port)]
        if others:
            peer = dial_back.Peer(others[0].address, others[0].port)
    if peer is None:
        return [ok("dial-back", "not checked: no other node is known yet")]
    return [
        await in_thread(
            partial(dial_back.ask, replace(peer, contexts=contexts), subject.address, subject.registry_port)
        )
    ]
