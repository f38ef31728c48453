# A process that is killed does nothing more: no finally, no except.  So the work is done in a forked child that counts
# its changes to the disk and ends itself, at once, at the one that it is told.  A write is cut in the middle.

"""Do something to the disk and be killed at the n-th change."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

CHANGES = ("open", "write", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "fchmod", "fchown", "fsync")
_KILLED, _FAILED = 77, 78


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether ``work`` was killed, which it is when it is about to make its change ``number``, or right after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads; the child starts none
        pid = os.fork()
    if pid == 0:
        try:
            _count_down(number)
            work()
            os._exit(0)
        except BaseException:
            os._exit(_FAILED)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, _KILLED), f"the work failed by itself at change {number}"
    return status == _KILLED


def each_death(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """For each change that ``work`` makes: prepare, die there, and let the caller look."""
    for number in itertools.count():
        prepare()
        if not killed_at(number, work):
            return
        yield number


def _count_down(number: int) -> None:
    left = itertools.count(number, -1)

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            if next(left) <= 0:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(_KILLED)
            return real(*args, **kwargs)

        return change

    for name in CHANGES:
        setattr(os, name, dying(name, getattr(os, name)))
