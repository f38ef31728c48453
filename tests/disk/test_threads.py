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
