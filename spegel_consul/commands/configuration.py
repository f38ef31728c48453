"""``spegel-consul configuration``, ``cleanup`` and ``cleanup-wait``: write and restore the runtimes' files.

The commands parse flags, choose the runtimes and print the changes; the files belong to :mod:`spegel_consul.runtimes`.
A rule about the choice of runtimes belongs here.
"""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from spegel_consul.commands.option_types import ADDRESS, DURATION, LIST, ConfigKind, option, path_option
from spegel_consul.commands.runtime_options import runtime_files
from spegel_consul.disk import foreign_files
from spegel_consul.endpoints.check import Status
from spegel_consul.error_words import in_words
from spegel_consul.http.basic_auth import Credentials, CredentialsError
from spegel_consul.http.server.listen import ListenError
from spegel_consul.preflight import daemon_process, proxies
from spegel_consul.preflight.proxies import Proxies
from spegel_consul.runtimes import daemon_json, docker, hosts_files
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import ConfigDirectory
from spegel_consul.runtimes.cleanup_status import serve_cleaned, wait_cleaned
from spegel_consul.runtimes.clients import installed_clients
from spegel_consul.runtimes.configure import (
    Plan,
    buildkitd_directory,
    containers_directory,
    daemon_directory,
    plan_buildkitd,
    plan_daemon,
    plan_hosts,
    plan_registries_conf,
)
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import Target, own_mirror, parse_registries, parse_targets


@click.command()
@option(
    "--runtime",
    type=click.Choice([kind.value for kind in ConfigKind]),
    multiple=True,
    default=["auto"],
    help="Runtimes to configure: containerd and docker (28 and later) read hosts.toml, docker-daemon is daemon.json for"
    " the others, podman and crio read registries.conf.d, buildkit is buildkitd.toml; auto detects them. May be"
    " repeated.",
)
@runtime_files
@path_option("--docker-sock", "/run/docker.sock", help="Asked by auto, and for Docker's version.")
@option(
    "--mirrored-registries",
    type=LIST,
    multiple=True,
    help="Registries to mirror, such as https://docker.io; several with commas.  [default: all, as _default]",
)
@option(
    "--mirror-targets",
    type=LIST,
    multiple=True,
    help="Mirrors, in the order to ask them; several with commas.  [default: the registry on this node, at 127.0.0.1 if"
    " it listens there]",
)
@option("--registry-addr", type=ADDRESS, default=":5000", help="As for registry; decides the default of mirrors.")
@option("--resolve-tags", type=bool, default=True, help="Whether mirrors are asked for tags, or for digests only.")
@option(
    "--docker-referrers",
    type=bool,
    default=None,
    help="Whether Docker asks the mirrors for signatures of images too. Docker 29.1 and later then pulls images with"
    " attestations while their registry is down; older ones refuse such a file, and so all pulls.  [default: by the"
    " version of the Docker behind --docker-sock]",
)
@option(
    "--prepend-existing",
    type=bool,
    is_flag=False,
    flag_value=True,
    default=None,
    help="Whether the mirrors are put before the hosts that a file has already, or replace them.  [default: true]",
)
@option(
    "--replace-existing", is_flag=True, help="The same as --prepend-existing=false: the hosts are dropped, by name."
)
@path_option(
    "--basic-auth-file",
    None,
    help="File with name:password lines, the first of which is sent to the mirrors; or a directory with the files"
    " username and password.",
)
@option(
    "--containerd-snapshotter",
    type=bool,
    default=True,
    help="Whether daemon.json switches on the containerd image store, which a Docker node needs to share layers.",
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def configuration(dry_run: bool, **given: Any) -> None:
    """Point this node's runtimes at the mirrors. The command cleanup restores the old configuration."""
    try:
        registries = parse_registries(item for items in given["mirrored_registries"] for item in items)
        targets = parse_targets(item for items in given["mirror_targets"] for item in items)
        targets = targets or (own_mirror(given["registry_addr"].host, given["registry_addr"].port),)
        keep = _keeps_existing(given["prepend_existing"], given["replace_existing"])
        authorization = _authorization(given["basic_auth_file"])
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    mirroring = Mirroring(targets, given["resolve_tags"], authorization)
    runtimes, notes = _runtimes(given, targets)
    plans: list[Plan] = []
    changed = False
    try:
        if ConfigKind.CONTAINERD in runtimes:
            base = given["containerd_registry_config_path"].absolute()
            plans.append(plan_hosts(base, registries, mirroring, keep_existing=keep))
        if ConfigKind.DAEMON in runtimes:
            path = given["docker_daemon_config"].absolute()
            flags = _dockerd_flags(given["docker_sock"], path)
            plans.append(plan_daemon(path, mirroring, snapshotter=given["containerd_snapshotter"], flags=flags))
        if ConfigKind.DOCKER in runtimes:
            base = given["docker_certs_path"].absolute()
            asked = replace(
                mirroring, referrers=_asks_for_signatures(given["docker_referrers"], given["docker_sock"], base)
            )
            plans.append(plan_hosts(base, registries, asked, keep_existing=keep))
        if runtimes & {ConfigKind.PODMAN, ConfigKind.CRIO}:
            base = given["containers_config_path"].absolute()
            plans.append(plan_registries_conf(base, registries, mirroring, keep_existing=keep))
            if plans[-1].changes and ConfigKind.CRIO in runtimes:
                notes.append("reload CRI-O to make it read registries.conf.d: systemctl reload crio")
        if ConfigKind.BUILDKIT in runtimes:
            path = given["buildkitd_config"].absolute()
            plans.append(plan_buildkitd(path, registries, mirroring, keep_existing=keep))
        for plan in plans:
            for line in plan.diff() if dry_run else plan.directory.write(plan.files):
                click.echo(line)
                changed = True
            notes += plan.notes
    except DiskError as exc:
        raise click.ClickException(str(exc)) from None
    if not changed:
        click.echo("nothing to change")
    for note in dict.fromkeys(notes):
        click.echo(f"note: {note}", err=True)


@click.command()
@runtime_files
@option(
    "--addr",
    type=ADDRESS,
    default=None,
    help="Keep running and answer at /readyz that the cleanup is done (for cleanup-wait).",
)
def cleanup(addr: Any, **given: Any) -> None:
    """Restore the runtimes' configuration exactly as it was before."""
    # in the reverse order of writing, because the directory of daemon.json may contain that of the hosts.toml files
    directories = [
        buildkitd_directory(given["buildkitd_config"].absolute()),
        containers_directory(given["containers_config_path"].absolute()),
        ConfigDirectory(given["docker_certs_path"].absolute()),
        daemon_directory(given["docker_daemon_config"].absolute()),
        ConfigDirectory(given["containerd_registry_config_path"].absolute()),
    ]
    done = False
    problems: list[str] = []
    for directory in directories:
        try:
            for line in directory.restore():
                click.echo(line)
                done = True
        except DiskError as exc:
            problems.append(str(exc))
    if problems:
        raise click.ClickException("; ".join(problems))
    if not done:
        click.echo("nothing to restore")
    if addr is not None:
        try:
            serve_cleaned(addr)
        except ListenError as exc:
            raise click.ClickException(str(exc)) from None


@click.command("cleanup-wait")
@option(
    "--probe-endpoint",
    required=True,
    type=ADDRESS,
    help="host:port of the cleanups; all addresses of the name are asked.",
)
@option(
    "--threshold",
    type=click.IntRange(1),
    default=3,
    help="How many times in a row all of them must answer that they are done.",
)
@option("--period", type=DURATION, default="2s", help="Time between two rounds.")
@option("--timeout", type=DURATION, default="10m", help="Longest wait; then the exit status is 1.")
def cleanup_wait(probe_endpoint: Any, threshold: int, period: float, timeout: float) -> None:
    """Wait until the cleanup has been done on all nodes."""
    if (problem := wait_cleaned(probe_endpoint, threshold, period, timeout)) is not None:
        raise click.ClickException(problem)


def _asks_for_signatures(given: bool | None, sock: Path, base: Path) -> bool:
    """Whether hosts.toml gets the capability ``referrers``; if Docker is silent, the files in ``base`` keep it."""
    if given is not None:
        return given
    try:
        return docker.ask(sock).knows_referrers
    except docker.NoDocker:
        return any("referrers" in hosts_files.capabilities(file) for file in hosts_files.files(base))


def _dockerd_flags(sock: Path, config: Path) -> dict[str, str]:
    """The settings that the running dockerd has from its flags, by the names that they have in its file ``config``."""
    process = daemon_process.of_socket(sock, "dockerd") or daemon_process.of_pid_file(
        sock.with_suffix(".pid"), "dockerd"
    )
    # another daemon's flags say nothing of this file
    if process is None or process.cwd / (process.flag("config-file") or "/etc/docker/daemon.json") != config:
        return {}
    given = {key: process.flag(*names) for key, names in daemon_json.FLAGS.items()}
    return {key: value for key, value in given.items() if value is not None}


def _keeps_existing(prepend: bool | None, replace: bool) -> bool:
    """Raises ValueError if the two flags contradict each other."""
    if prepend and replace:
        raise ValueError("--prepend-existing and --replace-existing exclude each other: give one of them")
    return not replace and prepend is not False


def _authorization(path: Path | None) -> str | None:
    """The value of the Authorization header. Raises ValueError with a clear message."""
    if path is None:
        return None
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            pair = ":".join(
                foreign_files.read(path / name, 4096).decode().rstrip("\r\n") for name in ("username", "password")
            )
        else:
            return Credentials(path).own  # the first line, as in the registry
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"--basic-auth-file {path} can't be read: {in_words(exc)}") from None
    except CredentialsError as exc:
        raise ValueError(f"--basic-auth-file {exc}") from None
    if pair.startswith(":") or "\n" in pair:
        raise ValueError(f"--basic-auth-file {path}: username and password must hold one line each")
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _runtimes(given: dict[str, Any], targets: tuple[Target, ...]) -> tuple[set[ConfigKind], list[str]]:
    """The kinds of files to write, and notes for the user. Raises click.ClickException without a runtime."""
    chosen = set(map(ConfigKind, given["runtime"]))
    if ConfigKind.AUTO not in chosen:
        return chosen, []
    chosen.remove(ConfigKind.AUTO)
    notes: list[str] = []
    traces = given["containerd_registry_config_path"].parent, Path("/run/containerd/containerd.sock")
    if any(map(foreign_files.may_exist, traces)):
        chosen.add(ConfigKind.CONTAINERD)
    try:
        found = docker.ask(given["docker_sock"])
    except docker.NoDocker as exc:
        if foreign_files.may_exist(given["docker_certs_path"].parent):
            chosen.add(ConfigKind.DOCKER)
            notes.append(f"{exc}; hosts.toml is read by Docker 28 and later, use --runtime=docker-daemon for others")
    else:
        proxy = proxies.check_of("docker", Proxies.of_docker(found), [target.url for target in targets])
        if proxy.status is Status.FAIL:
            notes.append(f"{proxy.says}: preflight prints the lines to add")
        if found.is_new_enough:
            chosen.add(ConfigKind.DOCKER)
        if not found.reads_hosts:
            chosen.add(ConfigKind.DAEMON)
            notes.append(
                f"Docker {found.version} {'with' if found.image_store else 'without'} the containerd image store"
                " uses mirrors for docker.io only"
            )
    chosen.update(map(ConfigKind, installed_clients.found()))
    if not chosen:
        raise click.ClickException("no runtime was found on this machine: give --runtime")
    return chosen, notes
