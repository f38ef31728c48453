"""Opening and replacing files, one rule at a time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from spegel_consul.disk import foreign_files
from spegel_consul.runtimes import atomic_files
from spegel_consul.runtimes.atomic_files import DiskError
from spegel_consul.runtimes.backup import BACKUP, ConfigDirectory, New


def test_a_link_is_refused_where_nobody_has_a_reason_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    assert foreign_files.read(tmp_path / "link", 100) == b"content"
    with pytest.raises(OSError, match="symbolic link"):
        foreign_files.read(tmp_path / "link", 100, follow=False)


@pytest.mark.parametrize("length", [0, 1, 99, 100])
def test_a_file_up_to_the_limit_is_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * length)
    assert foreign_files.read(tmp_path / "file", 100) == b"x" * length


def test_a_file_that_says_that_it_is_empty_is_read_up_to_the_limit() -> None:
    assert foreign_files.read("/proc/self/stat", 1 << 20)
    with pytest.raises(OSError) as caught:
        foreign_files.read("/proc/self/stat", 10)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("plant", ["link", "fifo", "file"])
def test_a_temporary_file_is_always_a_new_one(tmp_path: Path, plant: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "file"
    ready = atomic_files.temporary(path)
    if plant == "link":
        ready.symlink_to(victim)
    elif plant == "fifo":
        os.mkfifo(ready)
    else:
        os.link(victim, ready)
    atomic_files.write(path, b"new")
    assert victim.read_text() == "precious"
    assert (path.read_bytes(), path.is_symlink(), ready.exists()) == (b"new", False, False)


def test_a_temporary_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim, base = tmp_path / "victim", tmp_path / "certs.d"
    victim.mkdir()
    (victim / "precious").write_text("content")
    atomic_files.temporary(base).symlink_to(victim)
    list(ConfigDirectory(base).write({"docker.io/hosts.toml": New(b"x")}))
    assert sorted(path.name for path in victim.iterdir()) == ["precious"]
    assert (base / "docker.io" / "hosts.toml").read_bytes() == b"x"
    atomic_files.temporary(base).symlink_to(victim)
    list(ConfigDirectory(base).restore())
    assert (victim / "precious").read_text() == "content"


@pytest.mark.parametrize("what", ["_backup", "a directory in it", "the record"])
def test_a_backup_with_links_of_others_is_refused(tmp_path: Path, what: str) -> None:
    base, victim = tmp_path / "certs.d", tmp_path / "victim"
    (base / "docker.io").mkdir(parents=True)
    (base / "docker.io" / "hosts.toml").write_text("original")
    directory = ConfigDirectory(base)
    list(directory.write({"docker.io/hosts.toml": New(b"ours")}))
    moved = {"_backup": base / BACKUP, "a directory in it": base / BACKUP / "docker.io"}.get(
        what, base / BACKUP / "spegel-consul.json"
    )
    moved.rename(victim)
    moved.symlink_to(victim)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for change in (directory.restore, lambda: directory.write({"docker.io/hosts.toml": New(b"other")})):
        with pytest.raises(DiskError, match="symbolic link") as caught:
            list(change())
        assert str(moved) in str(caught.value)
    after = {str(path) for path in tmp_path.rglob("*")}
    assert after >= set(before)
    assert (base / "docker.io" / "hosts.toml").read_text() == "ours"


def test_an_original_that_is_a_link_is_still_kept_and_brought_back(tmp_path: Path) -> None:
    base = tmp_path / "certs.d"
    (base / "docker.io").mkdir(parents=True)
    (base / "shared.toml").write_text("original")
    (base / "docker.io" / "hosts.toml").symlink_to("../shared.toml")
    list(ConfigDirectory(base).write({"docker.io/hosts.toml": New(b"ours")}))
    list(ConfigDirectory(base).restore())
    assert (base / "docker.io" / "hosts.toml").readlink() == Path("../shared.toml")


@pytest.mark.parametrize("path", ["../victim", "/etc/victim", "a/../../victim", ""])
@pytest.mark.parametrize("where", ["files", "made"])
def test_a_record_that_leads_elsewhere_is_refused(tmp_path: Path, path: str, where: str) -> None:
    import json

    if where == "made" and path.startswith("/"):
        return  # directories above the place are made, and told with their whole path
    kept = {"existed": False, "written": [], "note": {}}
    found = {"version": 1, "made": [path] if where == "made" else [], "files": {path: kept} if where == "files" else {}}
    (tmp_path / "certs.d" / BACKUP).mkdir(parents=True)
    (tmp_path / "certs.d" / BACKUP / "spegel-consul.json").write_text(json.dumps(found))
    (tmp_path / "victim").write_text("precious")
    with pytest.raises(DiskError, match="can't be understood"):
        list(ConfigDirectory(tmp_path / "certs.d").restore())
    assert (tmp_path / "victim").read_text() == "precious"


async def test_a_call_that_hangs_holds_up_nothing() -> None:
    """The first one costs its time, the next ones nothing, and a stop nothing either; when it is back, all is well."""
    calls, hanging, called = foreign_files.FileCalls(0.05), threading.Event(), []

    def hangs() -> None:
        called.append(1)
        hanging.wait(60)

    try:
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                await calls.run(hangs)
            assert caught.value.errno == errno.ETIMEDOUT
        assert len(called) == 1
        stopped = foreign_files.FileCalls(60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stopped.run, hangs)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    finally:
        hanging.set()
    with trio.fail_after(30):
        while calls._limiter.borrowed_tokens:
            await trio.sleep(0.001)
    assert await foreign_files.FileCalls().run(lambda: 7) == 7
