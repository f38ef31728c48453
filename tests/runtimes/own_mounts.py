# A mount that all processes see can be held by any of them: a search or a backup that has a file of it open keeps the
# blocks of that file when it is removed, and keeps the mount from being unmounted.  A busy machine holds it longer.

"""Mounts that no other process can enter."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_mounts() -> Iterator[None]:
    """This thread and its children have mounts of their own meanwhile; those that are made vanish at the end.

    Files in them must be closed by then.
    """
    before = Path.cwd()
    with Path("/proc/thread-self/ns/mnt").open("rb") as home:
        _check(_libc.unshare(_CLONE_NEWNS))
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            _check(_libc.setns(home.fileno(), _CLONE_NEWNS))
            os.chdir(before)  # setns(2) has gone to the root directory


def _check(result: int) -> None:
    # os.unshare and os.setns came with Python 3.12
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
