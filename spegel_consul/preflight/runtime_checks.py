"""The checks of containerd and Docker: their answers, their configuration, and the mirrors that they ask.

containerd's configuration is what its own program makes of the files, where that program can be run, and else what the
rules of its version say. Nothing here follows a proxy, because a mirror must be asked without one. A new check of a
runtime belongs here.
"""

from __future__ import annotations

import ssl
import tomllib
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints.check import Check, fail, ok, warn
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
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable
from spegel_consul.store.containerd.grpc_client import ContainerdClient

_PROBE_TIMEOUT = 2.0
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
        checks += _hosts(subject, "docker", subject.docker_hosts, proxies_)
        checks += _referrers(found, subject.docker_hosts)
    elif found.mirrors:
        checks.append(probed("docker-mirrors", found.mirrors[0], "docker.io"))
        checks.append(proxies.check_of("docker", proxies_, node_mirrors(subject, found.mirrors)))
    else:
        fix = "spegel-consul configuration --runtime docker-daemon"
        checks.append(fail("docker-mirrors", "Docker has no registry-mirrors, so it never asks one", fix))
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


def _hosts(subject: Subject, runtime: str, base: Path, proxies_: Proxies | None) -> list[Check]:
    """Whether the hosts.toml files of a runtime name a mirror that answers, and that it asks without a proxy."""
    name = f"{runtime}-hosts"
    fix = f"spegel-consul configuration --runtime {runtime}"
    for file in hosts_files.files(base):
        try:
            hosts = list(tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode()).get("host", {}))
        except (OSError, ValueError) as exc:
            return [fail(name, f"{file} can't be read: {in_words(exc)}")]
        if hosts:
            first = probed(name, hosts[0], file.parent.name)
            return [first, proxies.check_of(runtime, proxies_, node_mirrors(subject, hosts))]
    return [fail(name, f"no hosts.toml in {base} names a mirror, so the runtime never asks one", fix)]


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


def node_mirrors(subject: Subject, urls: Sequence[str]) -> list[str]:
    """Those of ``urls`` that are registries of nodes: the first, and the others with the same port."""
    return [url for number, url in enumerate(urls) if number == 0 or url.endswith(f":{subject.registry_port}")]


def probed(name: str, url: str, registry: str) -> Check:
    """Whether the mirror ``url``, the first one of ``registry``, answers without a proxy. Waits 2 s at most."""
    of = "all registries" if registry == "_default" else registry
    shown = redaction.url(url)
    if not url.startswith(("http://", "https://")):
        return fail(name, f"the mirror {shown!r} of {of} is not a URL")
    try:
        # unverified, because the runtime has authorities of its own for the mirror's certificate
        context = ssl._create_unverified_context()  # noqa: S323
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        probe = f"{url.rstrip('/')}/livez"  # http or https, see above
        with direct.open(probe, timeout=_PROBE_TIMEOUT) as answer:
            answer.read(16)
    except (OSError, ValueError) as exc:
        says = f"{shown}, the first mirror of {of}, does not answer: {in_words(exc)}"
        return fail(name, says, "start the sidecar there, or write the files anew: spegel-consul configuration")
    return ok(name, f"{shown}, the first mirror of {of}, is alive")
