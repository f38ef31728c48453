"""The checks of containerd and Docker: their answers, their configuration, and the mirrors that they ask.

containerd's configuration is what its own program makes of the files, where that program can be run, and else what the
rules of its version say. Nothing here follows a proxy, because a mirror must be asked without one. A new check of a
runtime belongs here.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spegel_consul.disk import foreign_files, pem
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints import dial_back, health
from spegel_consul.endpoints.check import Check, Status, fail, ok, warn
from spegel_consul.error_words import in_words
from spegel_consul.preflight import config_dump, containerd_config, containerd_files, daemon_process, proxies
from spegel_consul.preflight.containerd_config import CriSettings, Place
from spegel_consul.preflight.containerd_files import Version
from spegel_consul.preflight.daemon_process import DaemonProcess
from spegel_consul.preflight.proxies import Proxies
from spegel_consul.preflight.subject import (
    CRI_NAMESPACE,
    DEFAULT_CONFIG,
    Subject,
    cri_is_used,
    docker_is_used,
    unless_used,
)
from spegel_consul.runtimes import docker, hosts_files, redaction
from spegel_consul.runtimes.mirror_targets import DEFAULT
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable
from spegel_consul.store.containerd.grpc_client import ContainerdClient

_PROBE_TIMEOUT = 2.0
_PROBES_AT_A_TIME = 16
_CRI_UNUSED = f"nothing is pulled through the CRI here: it has no namespace {CRI_NAMESPACE}; if something is, give"
_DOCKER_UNUSED = "nothing is pulled through Docker here: it has no images; if something is, give"


async def containerd_checks(subject: Subject) -> list[Check]:
    """The checks of containerd; none without a socket."""
    sock = subject.containerd_sock
    if sock is None:
        return []
    checks: list[Check] = []
    version = ""
    existing: tuple[str, ...] | None = None
    try:
        async with ContainerdClient(sock, "default", deadline=5.0) as client:
            version = await client.version()
            existing = await client.namespaces()
            root = subject.content_path or await client.content_root()
    except ContainerdUnavailable as exc:
        checks.append(fail("containerd", str(exc)))
    else:
        checks.append(ok("containerd", f"{version} answers at {sock}"))
        checks.append(_namespaces(subject.namespaces, existing))
        checks.append(await in_thread(lambda: _content(root, fresh=not existing)))
    if subject.containerd_hosts is None:
        return checks
    has_docker = await _docker_sock(subject) is not None
    own = await in_thread(partial(_cri, subject, subject.containerd_hosts, sock, Version.parse(version)))
    if await in_thread(lambda: cri_is_used(subject, existing, has_docker=has_docker)):
        return checks + own
    return checks + unless_used(own, f"{_CRI_UNUSED} --runtime containerd")


async def _docker_sock(subject: Subject) -> Path | None:
    """Docker's socket, if it may exist."""
    sock = subject.docker_sock
    return sock if sock is not None and await in_thread(partial(foreign_files.may_exist, sock)) else None


def _cri(subject: Subject, hosts: Path, sock: Path, version: Version) -> list[Check]:
    """The checks of the CRI's settings and of its mirrors."""
    process = daemon_process.of_socket(sock, "containerd")
    local = process if process is not None and process.shares_files else None
    path = subject.containerd_config or _config_of(local) or DEFAULT_CONFIG
    if not foreign_files.may_exist(path) and (local is None or path == subject.containerd_config):
        says = f"{path} does not exist, so the config_path of the CRI is not known"
        return [warn("config-path", says, "# give its path\n--containerd-config /path/config.toml")]
    checks: list[Check] = []
    try:
        document, place = _configuration(path, local, version, checks)
    except containerd_files.Unreadable as exc:
        return [fail("containerd-config", str(exc))]
    settings = CriSettings.of(document)
    checks += containerd_config.checks_of(settings, version, hosts, place)
    if settings.enabled:
        checks += _hosts(subject, "containerd", hosts, _proxies_of(process))
    return checks


def _config_of(process: DaemonProcess | None) -> Path | None:
    """The file that containerd was started with, if its command line names one."""
    given = process.flag("config", "c") if process is not None else None
    return process.cwd / given if process is not None and given else None


def _configuration(
    path: Path, process: DaemonProcess | None, version: Version, checks: list[Check]
) -> tuple[containerd_files.Document, Place]:
    """The configuration and the file to change; a doubt is appended to ``checks``. Raises Unreadable.

    ``process``: the daemon if it has the files of this process, else None.
    """
    if process is None:
        by_rules = containerd_files.read(path, version)
        return by_rules.document, Place.find(path, by_rules.files, version)
    try:
        by_rules = containerd_files.read(path, version, process.cwd)
    except containerd_files.MissingImport:
        raise
    except containerd_files.Unreadable:
        try:
            # the rules may be older than this daemon
            return config_dump.ask(process, path), Place.find(path, (), version)
        except config_dump.NoDump:
            pass
        raise
    document = by_rules.document
    if by_rules.files:  # old programs print nothing without a file
        try:
            document = config_dump.ask(process, path)
        except config_dump.NoDump as exc:
            says = f"containerd config dump fails, so {path} is judged by the rules of its version: {exc}"
            checks.append(warn("containerd-config", says))
    return document, Place.find(path, by_rules.files, version)


def _proxies_of(process: DaemonProcess | None) -> Proxies | None:
    variables = process.variables(proxies.VARIABLES) if process is not None else None
    return Proxies.of_environment(variables) if variables is not None else None


def _namespaces(wanted: tuple[str, ...], existing: tuple[str, ...]) -> Check:
    found = [name for name in wanted if name in existing]
    if found:
        return ok("namespace", f"containerd has {', '.join(found)}")
    if not existing:
        return ok("namespace", "containerd has none yet: the first image makes one")
    return warn(
        "namespace",
        f"containerd has {', '.join(existing)}, and none of those that are served: {', '.join(wanted)}",
        "\n".join(f"--containerd-namespace {name}" for name in existing),
    )


def _content(root: Path | None, *, fresh: bool) -> Check:
    """Whether blobs can be read from the disk; a ``fresh`` containerd has no image yet, nor the directory for it."""
    name = "content"
    if root is None:
        return warn(name, "containerd does not tell its content path: blobs are read through its API, which is slower")
    try:
        next((root / "blobs").iterdir(), None)
    except OSError as exc:
        if fresh and isinstance(exc, FileNotFoundError) and root.parent.is_dir():
            return ok(name, f"{root} is not there yet: the first image makes it")
        return warn(
            name,
            f"{root} can't be read ({in_words(exc)}): blobs are read through its API, which is slower",
            f"mount {root} read-only at the same place, or give --containerd-content-path",
        )
    return ok(name, f"{root} can be read")


async def docker_checks(subject: Subject) -> list[Check]:
    """The checks of Docker; none without a socket file."""
    sock = await _docker_sock(subject)
    if sock is None:
        return []
    try:
        found = await in_thread(partial(docker.ask, sock))
    except docker.NoDocker as exc:
        if subject.runtimes and not docker_is_used(subject, 0):
            return []
        return [fail("docker", str(exc))]
    return await in_thread(partial(_docker, subject, found))


def _docker(subject: Subject, found: docker.Docker) -> list[Check]:
    checks = [_image_store(found)]
    proxies_ = Proxies.of_docker(found)
    if found.reads_hosts and subject.docker_hosts is not None:
        checks += _hosts(subject, "docker", subject.docker_hosts, proxies_, found.mirrors)
        checks += _referrers(found, subject.docker_hosts)
    else:
        checks += _registry_mirrors(subject, found.mirrors, proxies_)
    if docker_is_used(subject, found.images):
        return checks
    return unless_used(checks, f"{_DOCKER_UNUSED} --runtime docker")


def _image_store(found: docker.Docker) -> Check:
    if not found.image_store:
        return fail(
            "docker",
            f"Docker {found.version} keeps images in its old store: this node pulls from peers but serves none",
            '# /etc/docker/daemon.json, without "storage-driver", then restart Docker\n'
            '"features": {"containerd-snapshotter": true}',
        )
    if found.driver in docker.OLD_DRIVERS:
        return fail(
            "docker",
            f"Docker {found.version} has the storage driver {found.driver}, with which its containerd image store pulls"
            " nothing",
            '# take "storage-driver" out of /etc/docker/daemon.json, or --storage-driver out of the flags of dockerd,'
            " then restart Docker",
        )
    if found.reads_hosts:
        return ok("docker", f"{found.version} with the containerd image store reads hosts.toml, for all registries")
    return warn("docker", f"{found.version} asks mirrors for docker.io only; from 28 on it does for all registries")


def _hosts(
    subject: Subject, runtime: str, base: Path, proxies_: Proxies | None, instead: Sequence[str] = ()
) -> list[Check]:
    """Whether the hosts.toml files of a runtime name a mirror that answers, and that it asks without a proxy.

    ``instead``: the mirrors that the runtime asks for docker.io if no file names a host for it.
    """
    name = f"{runtime}-hosts"
    fix = f"spegel-consul configuration --runtime {runtime}"
    named: dict[str, list[str]] = {}
    for file in hosts_files.files(base):
        try:
            named[hosts_files.registry_of(file.parent.name)] = hosts_files.hosts(file)
        except (OSError, ValueError) as exc:
            return [fail(name, f"{file} can't be read: {in_words(exc)}")]
    found = node_mirrors(subject, named)
    if not found and instead and not named.get("docker.io", named.get(DEFAULT)):
        says = f"no hosts.toml in {base} names a mirror, so the runtime asks its registry-mirrors, for docker.io only"
        return [warn(name, says, fix), *_registry_mirrors(subject, instead, proxies_)]
    if not found:
        return [fail(name, f"no hosts.toml in {base} names a mirror, so the runtime never asks one", fix)]
    check = alive_check(name, found)
    others = hosts_files.shadowing(base, found) if DEFAULT in found else []
    if check.status is Status.OK and others:
        says = f"{check.says}, but not asked for {', '.join(others)}, which have directories of their own in {base}"
        # all that are mirrored, because the command restores the files of those that it does not name
        registries = dict.fromkeys([DEFAULT, *sorted(found), *others])
        check = warn(name, says, f"{fix} --mirrored-registries {','.join(registries)}")
    return [check, proxies.check_of(runtime, proxies_, urls_of(found))]


def _registry_mirrors(subject: Subject, urls: Sequence[str], proxies_: Proxies | None) -> list[Check]:
    """Whether Docker's registry-mirrors have a mirror that answers, and that Docker asks without a proxy."""
    name, fix = "docker-mirrors", "spegel-consul configuration --runtime docker-daemon"
    found = node_mirrors(subject, {"docker.io": urls})
    if not found:
        return [fail(name, "Docker has no mirror in registry-mirrors, so it never asks one", fix)]
    return [alive_check(name, found), proxies.check_of("docker", proxies_, urls_of(found))]


def _referrers(found: docker.Docker, base: Path) -> list[Check]:
    """Whether hosts.toml names the capability ``referrers`` to a Docker that knows it, and to no other."""
    name, fix = "docker-referrers", "spegel-consul configuration --runtime docker"
    naming = [file for file in hosts_files.files(base) if "referrers" in hosts_files.capabilities(file)]
    if naming and not found.knows_referrers:
        says = (
            f"Docker {found.version} refuses {naming[0]}, and so all pulls: it does not know the capability referrers"
        )
        return [fail(name, says, fix)]
    if found.knows_referrers and not naming:
        says = f"Docker {found.version} can't pull images with attestations while their registry is down"
        return [warn(name, says, fix)]
    return []


class Probe(NamedTuple):
    """A host's answer. ``problem``: why it is no mirror that is alive; ``is_other``: another program answers there."""

    url: str
    problem: str = ""
    is_other: bool = False


def node_mirrors(subject: Subject, named: Mapping[str, Sequence[str]]) -> dict[str, list[Probe]]:
    """Of each registry those of its hosts, ``named`` by a runtime's files, that are registries of nodes.

    A host that does not answer counts if it has a port of this node, or if no other host is one. Waits 2 s for a host,
    and asks 16 at a time.
    """
    urls = tuple(dict.fromkeys(url for each in named.values() for url in each))
    with ThreadPoolExecutor(_PROBES_AT_A_TIME) as threads:
        probes = dict(zip(urls, threads.map(partial(_probed, subject), urls), strict=True))

    def having(counts: Callable[[Probe], bool]) -> dict[str, list[Probe]]:
        found = {registry: [probes[url] for url in each if counts(probes[url])] for registry, each in named.items()}
        return {registry: each for registry, each in found.items() if each}

    ports = tuple(f":{port}" for port in (subject.registry_port, subject.runtime_port) if port is not None)
    return having(lambda probe: not probe.problem or (not probe.is_other and probe.url.endswith(ports))) or having(
        lambda probe: not probe.is_other
    )


def urls_of(mirrors: Mapping[str, Sequence[Probe]]) -> list[str]:
    """The URLs of all mirrors, each once."""
    return list(dict.fromkeys(probe.url for each in mirrors.values() for probe in each))


def alive_check(name: str, mirrors: Mapping[str, Sequence[Probe]]) -> Check:
    """Whether the first mirror of each registry is alive; ``mirrors``: not empty."""
    firsts = [(registry, probes[0]) for registry, probes in mirrors.items()]
    registry, first = next((each for each in firsts if each[1].problem), firsts[0])
    of = "all registries" if registry == DEFAULT else registry
    says = f"{redaction.url(first.url)}, the first mirror of {of}, {first.problem or 'is alive'}"
    if first.problem:
        return fail(name, says, "start the sidecar there, or write the files anew: spegel-consul configuration")
    return ok(name, says)


def _probed(subject: Subject, url: str) -> Probe:
    """Ask the host without a proxy."""
    if not url.startswith(("http://", "https://")):
        return Probe(url, "is not a URL")
    try:
        # unverified, because the runtime has authorities of its own for the mirror's certificate
        context = dial_back.unverified()
        if subject.client_pair is not None:
            pem.load_pair(context, *subject.client_pair)
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        probe = f"{url.rstrip('/')}{health.LIVE}"  # http or https, see above
        with direct.open(probe, timeout=_PROBE_TIMEOUT) as answer:
            is_ours = answer.read(len(health.ALIVE.body) + 1) == health.ALIVE.body
    except (OSError, ValueError, http.client.HTTPException) as exc:
        is_other = isinstance(exc, urllib.error.HTTPError) and exc.code < 500
        return Probe(url, f"does not answer: {in_words(exc)}", is_other)
    return Probe(url) if is_ours else Probe(url, "is no spegel-consul", is_other=True)
