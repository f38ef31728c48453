"""Heap: what the garbage collector and the allocator keep in a process that runs for months.

Imports make a hundred thousand objects that live as long as the process. A full collection looks at all of them, which
holds the event loop up for 70 ms, and Python begins one only after a quarter as many new objects have survived. Until
then garbage in cycles keeps its memory. So the objects of the imports are frozen: the collector does not look at them
again, and full collections are frequent and short. Parts of the program are imported when they are used first, so
objects are frozen again after many late imports. Annotations of functions are dropped then, because only the imports
and type checkers read them; what is allocated later uses their memory.

Imports and the start execute machine code that is not needed again: a sixth of the resident memory. Its pages are
unmapped when everything has started.

glibc keeps freed memory that lies below memory in use. A burst of requests leaves megabytes of it, so free memory above
a limit is given back to the kernel every ten seconds. It also gives each thread a heap of its own, up to eight for a
processor. What one thread frees is not used by the others, so each heap grows to its own peak. One heap is enough here,
because threads allocate while they run Python, one at a time. Other C libraries do not have these calls, and are left
alone.

A rule about all memory of the process belongs here; the limit of one cache belongs to its module.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import trio

EVERY = 10.0
"""Seconds between two looks at the free memory."""

LATE = 100
"""Modules imported since the last freeze that justify another one; each one exempts the objects of its moment too."""

_MADV_DONTNEED = 4
_M_ARENA_MAX = -8  # malloc.h of glibc
_MAPPINGS = Path("/proc/self/smaps")
_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)")  # addresses, rights, inode of the file

_FREE = 1 << 20
"""Bytes of free memory that may stay, so that a small burst needs no new pages."""


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 (mallinfo(3)), in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def freeze() -> None:
    """Exempt all objects that exist from later collections, and give the memory of annotations and garbage back."""
    for each in gc.get_objects():
        if type(each) is FunctionType:
            del each.__annotations__
    gc.collect()
    gc.freeze()
    give_back(ctypes.CDLL(None), 0)


def share_one(libc: Any) -> None:
    """Make all threads allocate from one heap. ``libc``: the C library of this process, which has no threads yet."""
    if hasattr(libc, "malloc_trim"):  # as a sign of glibc, because others have a mallopt() with other numbers
        libc.mallopt(_M_ARENA_MAX, 1)


def unmap_code(libc: Any) -> None:
    """Unmap the pages of machine code; each is mapped again, from the page cache, when it is executed next.

    Half of them were needed by imports and the start alone. Mappings with private pages are left alone, because those
    would be lost: text relocations, and the marks of debuggers and tracers. ``libc``: the C library of this process.
    """
    if not hasattr(libc, "madvise"):
        return
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        lines = _MAPPINGS.read_bytes().splitlines()
    except OSError:
        return
    code: re.Match[bytes] | None = None
    for line in lines:
        if head := _MAPPING.match(line):
            code = head if head[3] == b"r-xp" and head[4] != b"0" else None
        elif code is not None and line.startswith(b"Anonymous:") and line.split()[1] == b"0":
            start, stop = int(code[1], 16), int(code[2], 16)
            libc.madvise(start, stop - start, _MADV_DONTNEED)


def give_back(libc: Any, most_free: int) -> bool:
    """Give free memory back to the kernel if there is more than ``most_free`` bytes, in about a millisecond.

    Returns whether it was done. ``libc``: the C library of this process.
    """
    if not hasattr(libc, "malloc_trim") or not hasattr(libc, "mallinfo2"):
        return False
    libc.mallinfo2.restype = _MallInfo
    if libc.mallinfo2().fordblks <= most_free:
        return False
    libc.malloc_trim(0)
    return True


async def keep_small(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Give free memory back and freeze late imports every :data:`EVERY` seconds, until cancelled."""
    libc, modules = ctypes.CDLL(None), len(sys.modules)
    unmap_code(libc)
    task_status.started()
    while True:
        await trio.sleep(EVERY)
        if len(sys.modules) > modules + LATE:
            modules = len(sys.modules)
            freeze()
            unmap_code(libc)
        else:
            give_back(libc, _FREE)
