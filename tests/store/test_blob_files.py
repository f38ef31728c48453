"""Blobs are opened on the event loop only if the disk need not be waited for."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest

from spegel_consul.store import blob_files
from spegel_consul.store.blob_files import may_be_there, open_blob, open_cached


def test_a_file_whose_name_is_known_to_the_kernel_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"layer")
    for open_it in (open_cached, open_blob):
        fd = open_it(str(path), 5)
        assert os.read(fd, 9) == b"layer"
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_name_that_the_kernel_has_to_look_up_is_left_to_a_thread(tmp_path: Path) -> None:
    path = str(tmp_path / uuid.uuid4().hex)
    with pytest.raises(BlockingIOError):
        open_cached(path, 5)
    assert may_be_there(path)
    with pytest.raises(FileNotFoundError):
        open_blob(path, 5)


def test_what_is_known_to_be_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_bytes(b"layer")
    assert may_be_there(str(tmp_path / "blob"))
    monkeypatch.setattr(blob_files, "_openat2", lambda *_: -1)
    monkeypatch.setattr(blob_files.ctypes, "get_errno", lambda: errno.ENOENT)
    assert not may_be_there(str(tmp_path / "blob"))


def test_what_is_no_blob_is_refused(tmp_path: Path) -> None:
    path, link, fifo = tmp_path / "blob", tmp_path / "link", tmp_path / "fifo"
    path.write_bytes(b"layer")
    link.symlink_to(path)
    os.mkfifo(fifo)
    files = open_files()
    for wrong, size in ((path, 6), (link, 5), (fifo, 0), (tmp_path, 5)):
        wrong.lstat()
        for open_it in (open_cached, open_blob):
            with pytest.raises(OSError, match=str(wrong)):
                open_it(str(wrong), size)
    assert open_files() <= files


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_a_kernel_or_a_sandbox_that_can_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"layer")
    monkeypatch.setattr(blob_files, "_openat2", lambda *_: -1)
    monkeypatch.setattr(blob_files.ctypes, "get_errno", lambda: code)
    with pytest.raises(BlockingIOError):
        open_cached(str(path), 5)
