from __future__ import annotations

import errno
import os
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from runtimes.certs_d import MIRRORING, OLD, OTHER, REGISTRIES, Tree, before_us, cleanup, configure, tree, written
from runtimes.killed import each_death, killed_at

from spegel_consul.runtimes import atomic_files
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import BACKUP, ConfigDirectory
from spegel_consul.runtimes.configure import Refused, daemon_directory, plan_daemon, plan_hosts
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import Registry


def test_there_and_back(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    before = tree(tmp_path)
    assert len(configure(base)) == 4
    files = written(base)
    assert all(text.index("10.0.0.7") > 0 for text in files.values())
    assert "http://cache" in files["ghcr.io/hosts.toml"]
    assert "http://managed" in files["quay.io/hosts.toml"]
    assert 'ca = ["ca.crt"]' in files["docker.io/hosts.toml"]
    info = (base / "ghcr.io/hosts.toml").stat()
    assert oct(info.st_mode & 0o777) == "0o640"
    if os.geteuid() == 0:
        assert (info.st_uid, info.st_gid) == (7, 8)
    assert (base / "_default/hosts.toml").stat().st_mode & 0o777 == 0o644
    assert (base / BACKUP / "ghcr.io/hosts.toml").read_text() == OLD
    configured = tree(tmp_path)
    assert configure(base) == []
    assert tree(tmp_path) == configured
    cleanup(base)
    assert tree(tmp_path) == before
    assert cleanup(base) == []
    assert tree(tmp_path) == before


def test_another_mirror_starts_from_the_original_again(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    before = tree(tmp_path)
    configure(base)
    configure(base, OTHER)
    for text in written(base).values():
        assert "10.0.0.8" in text
        assert "10.0.0.7" not in text
    assert "http://managed" in written(base)["quay.io/hosts.toml"]
    cleanup(base)
    assert tree(tmp_path) == before


def test_a_registry_that_is_mirrored_no_more_gets_its_file_back(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    before = tree(tmp_path)
    configure(base)
    configure(base, MIRRORING, [Registry("docker.io")])
    assert (base / "ghcr.io/hosts.toml").read_text() == OLD
    assert not (base / "_default").exists()
    assert list(plan_hosts(base, [Registry("_default")], MIRRORING, keep_existing=True).notes) == [
        f"{base} has directories for docker.io, ghcr.io, quay.io, so runtimes do not read _default for them:"
        " name them in --mirrored-registries to have them mirrored too"
    ]
    cleanup(base)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("depth", ["certs.d", "containerd/certs.d", "a/b/certs.d"])
def test_a_missing_directory_is_made_and_goes_again(tmp_path: Path, depth: str) -> None:
    configure(tmp_path / depth)
    assert len(written(tmp_path / depth)) == 4
    cleanup(tmp_path / depth)
    assert tree(tmp_path) == {}


def test_a_directory_that_others_use_meanwhile_stays(tmp_path: Path) -> None:
    base = tmp_path / "containerd/certs.d"
    configure(base)
    (base / "lan").mkdir()
    (base / "_default/mine.txt").touch()
    cleanup(base)
    assert set(tree(base)) == {"lan", "_default", "_default/mine.txt"}


def test_a_file_that_was_edited_meanwhile_is_kept_beside(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    configure(base)
    (base / "ghcr.io/hosts.toml").write_text("# mine\n")
    assert any("edited" in line for line in configure(base))
    assert (base / "ghcr.io/hosts.toml.edited").read_text() == "# mine\n"
    (base / "ghcr.io/hosts.toml").write_text("# mine again\n")
    cleanup(base)
    assert (base / "ghcr.io/hosts.toml").read_text() == OLD
    assert (base / "ghcr.io/hosts.toml.edited").read_text() == "# mine\n"
    assert (base / "ghcr.io/hosts.toml.edited.1").read_text() == "# mine again\n"


def test_the_same_edit_is_kept_once(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    for text in ("# mine\n", "# other\n", "# mine\n", "# third\n"):
        configure(base)
        (base / "ghcr.io/hosts.toml").write_text(text)
    cleanup(base)
    kept = {path.name: path.read_text() for path in (base / "ghcr.io").glob("*.edited*")}
    assert kept == {
        "hosts.toml.edited": "# mine\n",
        "hosts.toml.edited.1": "# other\n",
        "hosts.toml.edited.2": "# third\n",
    }


def test_a_password_is_not_for_everybody(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    plan = plan_hosts(base, REGISTRIES, replace(MIRRORING, authorization="Basic c2VjcmV0"), keep_existing=True)
    assert "c2VjcmV0" not in "\n".join(plan.diff())
    list(plan.directory.write(plan.files))
    for path in base.glob("*/hosts.toml"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_backup_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / BACKUP / "ghcr.io").mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(DiskError, match="another program"):
        configure(tmp_path)
    with pytest.raises(DiskError, match="another program"):
        cleanup(tmp_path)
    (tmp_path / BACKUP / "spegel-consul.json").write_text("{}")
    with pytest.raises(DiskError, match="can't be understood"):
        cleanup(tmp_path)
    (tmp_path / BACKUP / "spegel-consul.json").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"server = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_stops_everything(tmp_path: Path, content: bytes) -> None:
    base = before_us(tmp_path)
    (base / "ghcr.io/hosts.toml").write_bytes(content)
    before = tree(tmp_path)
    for keep in (True, False):
        with pytest.raises(Refused, match=r"ghcr\.io/hosts\.toml was left alone"):
            plan_hosts(base, REGISTRIES, MIRRORING, keep_existing=keep)
    assert tree(tmp_path) == before


class TestKilled:
    """At every single change to the disk, in both directions, with a directory that is there and one that is not."""

    @pytest.fixture(params=["there", "missing"])
    def start(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
        root = tmp_path / "etc"
        root.mkdir()
        if request.param == "there":
            return root, before_us(root)
        return root, root / "containerd/certs.d"

    def test_while_configuring(self, start: tuple[Path, Path]) -> None:
        root, base = start
        before = tree(root)
        configure(base)
        after, texts = tree(root), written(base)
        cleanup(base)
        old = written(base)
        deaths = 0
        for number in each_death(lambda: configure(base), lambda: None):
            deaths += 1
            for name, text in written(base).items():
                assert text in (texts[name], old.get(name)), f"{name} is neither old nor new after change {number}"
            assert set(old) <= set(written(base))
            if number % 2:
                configure(base)
                assert tree_without_times(root) == without_times(after)
            cleanup(base)
            assert tree(root) == before, f"cleanup after a death at change {number}"
        assert deaths > 30
        cleanup(base)
        assert tree(root) == before

    def test_while_cleaning_up(self, start: tuple[Path, Path]) -> None:
        root, base = start
        before, old = tree(root), written(base)
        configure(base)
        texts = written(base)
        cleanup(base)
        deaths = 0
        for number in each_death(lambda: cleanup(base), lambda: configure(base)):
            deaths += 1
            for name, text in written(base).items():
                assert text in (texts[name], old.get(name))
            assert set(old) <= set(written(base))
            cleanup(base)
            assert tree(root) == before, f"a second cleanup after a death at change {number}"
        assert deaths > 10

    def test_again_and_again_with_other_mirrors(self, start: tuple[Path, Path]) -> None:
        root, base = start
        before = tree(root)
        number = 0
        while killed_at(number, partial(configure, base, OTHER if number % 2 else MIRRORING)):
            number += 3
        assert number > 30
        cleanup(base)
        assert tree(root) == before

    def test_a_daemon_json(self, tmp_path: Path) -> None:
        path = tmp_path / "etc/daemon.json"

        def write() -> None:
            plan = plan_daemon(path, MIRRORING, snapshotter=True)
            list(plan.directory.write(plan.files))

        path.parent.mkdir()
        path.write_text('{"debug": true}')
        before = tree(tmp_path)
        for _ in each_death(write, lambda: None):
            assert path.read_text().startswith('{"debug": true')
            list(daemon_directory(path).restore())
            assert tree(tmp_path) == before


def without_times(found: Tree) -> Tree:
    """The record has a list of what was written, which is longer after a crash."""
    return {
        name: (*entry[:3], entry[3][0] if isinstance(entry[3], tuple) else entry[3]) for name, entry in found.items()
    }


def tree_without_times(root: Path) -> Tree:
    return without_times(tree(root))


def test_a_daemon_json_that_was_edited_loses_only_our_part(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{\n  "debug": true\n}\n')
    plan = plan_daemon(path, MIRRORING, snapshotter=True)
    assert list(plan.directory.write(plan.files))
    path.write_text(path.read_text().replace("true", "false", 1))
    plan = plan_daemon(path, OTHER, snapshotter=True)
    list(plan.directory.write(plan.files))
    assert "10.0.0.7" not in path.read_text()
    assert '"debug": false' in path.read_text()
    path.write_text(path.read_text().replace("false", "0", 1))
    assert "took our part out" in "".join(list(plan.directory.restore()))
    assert path.read_text() == '{\n  "debug": 0\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["daemon.json"]


def write_daemon(path: Path, mirroring: Mirroring) -> None:
    plan = plan_daemon(path, mirroring, snapshotter=True)
    list(plan.directory.write(plan.files))


@pytest.mark.parametrize("existing", ['{\n  "debug": true\n}\n', None])
@pytest.mark.parametrize("again", [MIRRORING, OTHER])
def test_an_edit_of_daemon_json_outlives_configuring_again(
    tmp_path: Path, existing: str | None, again: Mirroring
) -> None:
    path = tmp_path / "daemon.json"
    if existing is not None:
        path.write_text(existing)
        path.chmod(0o640)
    write_daemon(path, MIRRORING)
    path.write_text(path.read_text().replace("{", '{"log-level": "warn",', 1))
    mode = path.stat().st_mode
    for _ in each_death(partial(write_daemon, path, again), lambda: None):
        assert '"log-level": "warn"' in path.read_text()
    write_daemon(path, again)
    list(daemon_directory(path).restore())
    text = path.read_text()
    assert '"log-level": "warn"' in text
    assert "10.0.0." not in text
    assert path.stat().st_mode == mode
    assert [entry.name for entry in tmp_path.iterdir()] == ["daemon.json"]


@pytest.mark.parametrize("again", [MIRRORING, OTHER])
def test_an_edit_of_daemon_json_outlives_a_death_at_any_change(tmp_path: Path, again: Mirroring) -> None:
    path = tmp_path / "daemon.json"

    def prepare() -> None:
        list(daemon_directory(path).restore())
        path.write_text('{\n  "debug": true\n}\n')
        write_daemon(path, MIRRORING)
        path.write_text(path.read_text().replace("{", '{"log-level": "warn",', 1))

    for number in each_death(partial(write_daemon, path, again), prepare):
        list(daemon_directory(path).restore())
        assert '"log-level": "warn"' in path.read_text(), number
        assert "10.0.0." not in path.read_text(), number


@pytest.mark.parametrize("and_again", [False, True])
def test_an_edit_of_daemon_json_after_a_death_at_any_change(tmp_path: Path, and_again: bool) -> None:
    path = tmp_path / "daemon.json"

    def prepare() -> None:
        list(daemon_directory(path).restore())
        path.write_text('{\n  "debug": true\n}\n')
        write_daemon(path, MIRRORING)

    for number in each_death(partial(write_daemon, path, OTHER), prepare):
        path.write_text(path.read_text().replace("{", '{"log-level": "warn",', 1))
        if and_again:
            write_daemon(path, OTHER)
            assert "10.0.0.7" not in path.read_text(), number
        list(daemon_directory(path).restore())
        assert path.read_text() == '{"log-level": "warn",\n  "debug": true\n}\n', number


def test_a_death_while_an_original_is_copied_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, such as an SMB share."""

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "daemon.json"
    path.write_text("{}")

    def prepare() -> None:
        list(daemon_directory(path).restore())

    for number in each_death(partial(write_daemon, path, MIRRORING), prepare):
        list(daemon_directory(path).restore())
        assert [entry.name for entry in tmp_path.iterdir()] == ["daemon.json"], number
        assert path.read_text() == "{}", number


def test_a_file_that_cant_be_restored_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = before_us(tmp_path)
    before = tree(tmp_path)
    configure(base)
    real = atomic_files.move

    def move(path: Path, to: Path) -> None:
        if to.parent.name in ("ghcr.io", "quay.io"):
            raise DiskError(f"can't write {to}")
        real(path, to)

    (base / "docker.io/hosts.toml").unlink()
    (base / "docker.io/hosts.toml").mkdir()
    monkeypatch.setattr(atomic_files, "move", move)
    said = []
    with pytest.raises(DiskError) as raised:
        said.extend(ConfigDirectory(base).restore())
    for name in ("docker.io", "ghcr.io", "quay.io"):
        assert f"{base}/{name}/hosts.toml" in str(raised.value)
    assert not (base / "_default/hosts.toml").exists()
    # what is restored is no more ours
    (base / "_default/hosts.toml").write_text("# mine\n")
    monkeypatch.setattr(atomic_files, "move", real)
    (base / "docker.io/hosts.toml").rmdir()
    cleanup(base)
    assert (base / "_default/hosts.toml").read_text() == "# mine\n"
    (base / "_default/hosts.toml").unlink()
    (base / "_default").rmdir()
    assert tree(tmp_path) == before


def test_replacing_the_hosts_of_a_file_keeps_its_server_and_its_certificates(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    (base / "ghcr.io/hosts.toml").write_text('server = "https://harbor.lan"\nca = "ca.crt"\n\n[host."http://cache"]\n')
    plan = plan_hosts(base, REGISTRIES, MIRRORING, keep_existing=False)
    list(plan.directory.write(plan.files))
    document = tomllib.loads(written(base)["ghcr.io/hosts.toml"])
    assert list(document.pop("host")) == ["http://10.0.0.7:5000"]
    assert document == {"server": "https://harbor.lan", "ca": "ca.crt"}


def test_an_image_store_that_was_switched_off_is_off_again_in_an_edited_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"features": {"containerd-snapshotter": false}}')
    write_daemon(path, MIRRORING)
    path.write_text(path.read_text().replace("{", '{"debug": true, ', 1))
    write_daemon(path, OTHER)
    list(daemon_directory(path).restore())
    assert path.read_text() == '{"debug": true, "features": {"containerd-snapshotter": false}}'
