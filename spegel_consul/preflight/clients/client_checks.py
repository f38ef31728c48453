"""The checks of podman, CRI-O and BuildKit: their configuration, and the mirrors that they ask.

Only CRI-O and BuildKit have a process whose environment can be read; podman takes that of the command. A client counts
as used if ``--runtime`` names it or ``configuration`` was run for it. Otherwise its findings are warnings, because a
socket says little of what a node's jobs pull with. A new check of one of these clients belongs here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path

from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints.check import Check, Status, fail, warn
from spegel_consul.preflight import daemon_process, proxies
from spegel_consul.preflight.proxies import Proxies
from spegel_consul.preflight.runtime_checks import alive_check, node_mirrors, urls_of
from spegel_consul.preflight.subject import Subject, unless_used
from spegel_consul.runtimes import atomic_files
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.clients import buildkitd_toml, installed_clients, registries_conf
from spegel_consul.runtimes.clients.installed_clients import BUILDKIT, BUILDKIT_SOCKET, CRIO, CRIO_SOCKET, PODMAN
from spegel_consul.runtimes.clients.registries_conf import Configuration
from spegel_consul.runtimes.configure import conf_files
from spegel_consul.runtimes.hosts_toml import Unusable


async def client_checks(subject: Subject) -> list[Check]:
    """The checks of these clients; none for a client of which there is no trace."""
    return await in_thread(partial(_containers, subject)) + await in_thread(partial(_buildkit, subject))


def _found(subject: Subject, *clients: str) -> list[str]:
    """Those of ``clients`` that ``--runtime`` names, or of which there is a trace."""
    return [client for client in clients if client in (subject.runtimes or installed_clients.found())]


def _severity(subject: Subject, client: str, checks: list[Check], *, configured: bool) -> list[Check]:
    if configured or client in subject.runtimes:
        return checks
    return unless_used(checks, f"nothing says that this node's jobs use it; if they do, give --runtime {client}")


def _containers(subject: Subject) -> list[Check]:
    base = subject.containers_config
    if base is None:
        return []
    path = str(base / registries_conf.DIRECTORY / registries_conf.NAME)
    clients = _found(subject, PODMAN, CRIO)
    configured = False
    try:
        files = conf_files(base)
        configured = any(name == path and text.startswith(registries_conf.HEADER) for name, text in files)
        if configured and not subject.runtimes:
            clients = clients or [PODMAN]
        checks = _registries_conf(subject, base, files, path, clients) if clients else []
    except DiskError as exc:
        checks = [fail(f"{clients[0]}-mirrors", str(exc))] if clients else []
    except Unusable as exc:
        says = f"{exc}; podman, skopeo, Buildah and CRI-O refuse every pull"
        checks = [fail(f"{clients[0]}-mirrors", says)] if clients else []
    return _severity(subject, clients[0], checks, configured=configured) if clients else []


def _registries_conf(
    subject: Subject, base: Path, files: list[tuple[str, str]], path: str, clients: list[str]
) -> list[Check]:
    """The checks of all ``files``; that at ``path`` is ours. Raises Unusable."""
    name, copies = f"{clients[0]}-mirrors", f"{clients[0]}-copies"
    fix = f"spegel-consul configuration --runtime {clients[0]}"
    counting = Configuration.of(files)
    others = Configuration.of(file for file in files if file[0] != path)
    ours = Configuration.of(file for file in files if file[0] == path)
    mirrors = node_mirrors(
        subject, _hub_first({each.prefix: list(map(_url, each.mirrors)) for each in counting.entries.values()})
    )
    if mirrors:
        checks = [alive_check(name, mirrors)]
        if CRIO in clients:
            checks.append(proxies.check_of(CRIO, _proxies_of(CRIO_SOCKET, CRIO), urls_of(mirrors)))
    else:
        checks = [fail(name, f"no table that counts in {base} has a mirror, so podman and CRI-O never ask one", fix)]
    for prefix, copy in ours.entries.items():
        origin = counting.entries[prefix].origin
        other = others.of_host(prefix)
        if origin != path:
            says = f"{origin} has a table of {prefix} and is read after {path}, so the mirror is not asked"
            checks.append(warn(copies, says, f"# rename {Path(origin).name} to a name before {registries_conf.NAME}"))
        elif other is not None and _differ(other.keys, copy.keys):
            says = f"the table of {prefix} in {other.origin} was changed, but its copy in {path} counts"
            checks.append(warn(copies, says, fix))
    return checks


def _hub_first(named: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """That of Docker Hub first, because most images are from there."""
    return dict(sorted(named.items(), key=lambda item: (item[0] != "docker.io", item[0])))


def _url(mirror: Mapping[str, object]) -> str:
    host = str(mirror["location"]).partition("/")[0]
    return f"{'http' if mirror.get('insecure') is True else 'https'}://{host}"


def _differ(table: Mapping[str, object], copy: Mapping[str, object]) -> bool:
    """Whether a table has other settings than its copy, which may allow HTTP in addition."""
    keys = {*table, *copy} - {"mirror", "prefix", "location"}
    return any(table.get(key, copy.get(key) if key == "insecure" else None) != copy.get(key) for key in keys)


def _buildkit(subject: Subject) -> list[Check]:
    path = subject.buildkitd_config
    if path is None:
        return []
    name, fix = "buildkit-mirrors", "spegel-consul configuration --runtime buildkit"
    configured = False
    try:
        text = (atomic_files.read(path) or b"").decode(errors="replace")
        configured = buildkitd_toml.HEADER in text and not subject.runtimes
        if not _found(subject, BUILDKIT) and not configured:
            return []
        mirrors = buildkitd_toml.mirrors(text)
    except DiskError as exc:
        checks = [fail(name, str(exc))]
    except Unusable as exc:
        checks = [fail(name, f"{path} can't be used: {exc}")]
    else:
        found = node_mirrors(subject, _hub_first({host: list(map(_host_of, urls)) for host, urls in mirrors.items()}))
        if found:
            checks = [_paths_checked(alive_check(name, found), mirrors, urls_of(found))]
            checks.append(proxies.check_of(BUILDKIT, _proxies_of(BUILDKIT_SOCKET, "buildkitd"), urls_of(found)))
        else:
            checks = [fail(name, f"{path} names no mirror, so BuildKit never asks one", fix)]
    return _severity(subject, BUILDKIT, checks, configured=configured)


def _host_of(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _paths_checked(check: Check, mirrors: Mapping[str, Sequence[str]], ours: Container[str]) -> Check:
    """A mirror with the registry in its path is told the registry twice, so it finds no tag (docs/buildkit.md)."""
    if check.status is Status.FAIL:
        return check
    for host, urls in mirrors.items():
        for url in urls:
            if _host_of(url) in ours and url.partition("://")[2].partition("/")[2] == host:
                says = f"the mirror {url} has {host} in its path, but BuildKit names the registry itself"
                fix = "spegel-consul configuration --runtime buildkit --replace-existing"
                return warn(check.name, f"{says}: no tag is found there", fix)
    return check


def _proxies_of(socket: Path, program: str) -> Proxies | None:
    process = daemon_process.of_socket(socket, program)
    variables = process.variables(proxies.VARIABLES) if process is not None else None
    return Proxies.of_environment(variables) if variables is not None else None
