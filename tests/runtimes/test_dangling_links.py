"""Files of the user that are links to a place that is not there, such as one that a container does not have mounted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runtimes.certs_d import MIRRORING, OTHER, tree

from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import ConfigDirectory
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
from spegel_consul.runtimes.mirror_targets import Registry

GHCR = [Registry("ghcr.io")]


def daemon(root: Path, mirroring: Mirroring = MIRRORING) -> Plan:
    return plan_daemon(root / "daemon.json", mirroring, snapshotter=True)


def buildkitd(root: Path, mirroring: Mirroring = MIRRORING) -> Plan:
    return plan_buildkitd(root / "buildkitd.toml", GHCR, mirroring, keep_existing=True)


def hosts(root: Path, mirroring: Mirroring = MIRRORING) -> Plan:
    return plan_hosts(root, GHCR, mirroring, keep_existing=True)


def registries_conf(root: Path, mirroring: Mirroring = MIRRORING) -> Plan:
    return plan_registries_conf(root, GHCR, mirroring, keep_existing=True)


ALL = [
    ("daemon.json", daemon, lambda root: daemon_directory(root / "daemon.json")),
    ("buildkitd.toml", buildkitd, lambda root: buildkitd_directory(root / "buildkitd.toml")),
    ("ghcr.io/hosts.toml", hosts, ConfigDirectory),
    ("registries.conf", registries_conf, containers_directory),
    ("registries.conf.d/a.conf", registries_conf, containers_directory),
]
WRITTEN = ALL[:3]  # the command replaces these, and only reads the others


def linked(root: Path, name: str) -> Path:
    """A directory whose file ``name`` is a link to a file beside it. Returns that file."""
    path = root / "etc" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(root / "managed")
    return root / "managed"


@pytest.mark.parametrize(("name", "plan", "_directory"), ALL, ids=[each[0] for each in ALL])
def test_a_link_to_nowhere_is_not_a_missing_file(
    tmp_path: Path, name: str, plan: Callable[[Path], Plan], _directory: object
) -> None:
    managed = linked(tmp_path, name)
    before = tree(tmp_path)
    with pytest.raises(DiskError, match=f"{name} is a link to {managed}, which does not exist here: mount that too"):
        plan(tmp_path / "etc")
    assert tree(tmp_path) == before


def test_a_directory_that_is_a_link_to_nowhere_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "ghcr.io").symlink_to("managed")
    with pytest.raises(DiskError, match=r"ghcr\.io is a link to managed, which does not exist here"):
        plan_hosts(tmp_path, [Registry("_default"), *GHCR], MIRRORING, keep_existing=True)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize(("name", "plan", "directory"), WRITTEN, ids=[each[0] for each in WRITTEN])
def test_the_target_goes_after_the_link_was_replaced(
    tmp_path: Path,
    name: str,
    plan: Callable[..., Plan],
    directory: Callable[[Path], ConfigDirectory],
    edited: bool,
) -> None:
    managed = linked(tmp_path, name)
    managed.write_text("{}" if name.endswith("json") else "")
    planned = plan(tmp_path / "etc")
    list(planned.directory.write(planned.files))
    managed.unlink()
    if edited:
        path = tmp_path / "etc" / name
        path.write_text(path.read_text() + "\n")
    else:
        with pytest.raises(DiskError, match=f"{name} is a link to {managed}, which does not exist here"):
            plan(tmp_path / "etc", OTHER)
    list(directory(tmp_path / "etc").restore())
    assert not (tmp_path / "etc/_backup").exists()
    if not edited:
        assert (tmp_path / "etc" / name).readlink() == managed


def test_a_link_to_nowhere_in_place_of_our_file(tmp_path: Path) -> None:
    path = tmp_path / "etc/daemon.json"
    path.parent.mkdir()
    planned = daemon(path.parent)
    list(planned.directory.write(planned.files))
    path.unlink()
    path.symlink_to(tmp_path / "managed")
    list(daemon_directory(path).restore())
    assert [each.name for each in path.parent.iterdir()] == ["daemon.json"]
    assert path.is_symlink()


def test_a_registry_that_is_left_out_gets_its_link_back_without_the_target(tmp_path: Path) -> None:
    target = linked(tmp_path, "ghcr.io/hosts.toml")
    target.write_text('server = "https://ghcr.io"\n')
    base = tmp_path / "etc"
    for registries in (GHCR, [Registry("docker.io")]):
        plan = plan_hosts(base, registries, MIRRORING, keep_existing=True)
        list(plan.diff())
        list(plan.directory.write(plan.files))
        target.unlink(missing_ok=True)
    assert (base / "ghcr.io/hosts.toml").readlink() == target
    assert (base / "docker.io/hosts.toml").is_file()
