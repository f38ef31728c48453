"""What may wait for a disk is done in threads."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import trio

from spegel_consul.disk import threads


@pytest.mark.parametrize("deleted", [False, True])
async def test_the_last_close_of_a_deleted_file_is_left_to_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    closed: list[tuple[int, bool]] = []
    done, original = trio.Event(), os.close
    token = trio.lowlevel.current_trio_token()

    def close(fd: int) -> None:
        closed.append((fd, threading.current_thread() is threading.main_thread()))
        original(fd)
        token.run_sync_soon(done.set)

    path = tmp_path / "blob"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    if deleted:
        path.unlink()
    monkeypatch.setattr(os, "close", close)
    threads.close(fd)
    with trio.fail_after(5):
        await done.wait()
    assert closed == [(fd, not deleted)]


async def test_without_a_thread_it_is_closed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    threads.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        threads.close(fd)


async def test_a_file_of_a_file_system_that_has_failed_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.fstat

    def fails(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    monkeypatch.setattr(os, "fstat", fails)
    threads.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        original(fd)


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refused)


@pytest.mark.usefixtures("no_thread")
async def test_without_a_thread_a_call_fails_as_if_the_disk_did() -> None:
    with pytest.raises(OSError, match="limit of processes") as found:
        await threads.in_thread(os.getpid)
    assert not isinstance(found.value, BlockingIOError), "nobody is to try again at once"


async def test_an_error_of_the_call_is_not_taken_for_a_missing_thread() -> None:
    def fails() -> None:
        raise RuntimeError("odd")

    with pytest.raises(RuntimeError, match="odd"):
        await threads.in_thread(fails)


@pytest.mark.usefixtures("no_thread")
async def test_without_a_thread_a_little_is_read_at_once(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert await threads.read(file.fileno(), len(content), 10) == content[10 : 10 + threads.ON_LOOP]


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


async def test_no_duplicate_is_left_at_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, dup = 0, os.dup

    def every_second_fails(fd: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return dup(fd)

    monkeypatch.setattr(os, "dup", every_second_fails)
    before = open_files()
    for _ in range(5):
        with pytest.raises(OSError, match="Too many open files"):
            await threads.in_thread_with((0, 1), lambda *_: None)
    assert open_files() == before


@pytest.mark.usefixtures("no_thread")
async def test_no_duplicate_is_left_without_a_thread() -> None:
    before = open_files()
    with pytest.raises(threads.NoThread):
        await threads.in_thread_with((0, 1), lambda *_: None)
    assert open_files() == before


async def test_an_abandoned_thread_keeps_its_duplicates_until_it_ends() -> None:
    goes_on, begun, copies = threading.Event(), threading.Event(), []

    def waits(*fds: int) -> None:
        copies.extend(fds)
        begun.set()
        goes_on.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.in_thread_with, (0, 1), waits)
        while not begun.is_set():
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert len(copies) == 2
    assert open_files() >= {str(fd) for fd in copies}
    goes_on.set()
    with trio.fail_after(5):
        while open_files() & {str(fd) for fd in copies}:
            await trio.sleep(0.001)
