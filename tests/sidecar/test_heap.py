"""The collector leaves the imports alone, and free memory goes back to the kernel."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import trio
import trio.testing

from spegel_consul.sidecar import heap

MIB = 1 << 20


def c_library(free: int, trims: list[int]) -> SimpleNamespace:
    """A C library with ``free`` bytes of free memory, which notes the calls of malloc_trim."""

    def mallinfo2() -> SimpleNamespace:
        return SimpleNamespace(fordblks=free)

    return SimpleNamespace(mallinfo2=mallinfo2, malloc_trim=trims.append)


@pytest.mark.parametrize(("free", "trims"), [(MIB, []), (MIB + 1, [0])], ids=["a little stays", "the rest goes back"])
def test_free_memory_above_a_limit_is_given_back(free: int, trims: list[int]) -> None:
    done: list[int] = []
    assert heap.give_back(c_library(free, done), MIB) == bool(trims)
    assert done == trims


def test_another_c_library_is_left_alone() -> None:
    assert not heap.give_back(SimpleNamespace(), 0)


def test_this_c_library_is_asked_rightly() -> None:
    libc = ctypes.CDLL(None)
    assert heap.give_back(libc, 0) == hasattr(libc, "mallinfo2")
    assert not heap.give_back(libc, 1 << 40)


async def test_free_memory_is_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(heap, "give_back", lambda libc, most: looks.append(trio.current_time()))
    began = trio.current_time()
    with trio.move_on_after(3.5 * heap.EVERY):
        await heap.keep_small()
    assert looks == [began + number * heap.EVERY for number in (1, 2, 3)]


def test_frozen_objects_are_not_looked_at_again() -> None:
    code = """
import gc
from spegel_consul.sidecar import heap
heap.freeze()
assert gc.get_freeze_count() > 10_000, gc.get_freeze_count()
assert heap.freeze.__annotations__ == {}
assert len(gc.get_objects()) < 100, len(gc.get_objects())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_code_that_was_executed_once_is_unmapped_and_runs_again() -> None:
    code = """
import ctypes, decimal, hashlib, re, sqlite3, ssl
from pathlib import Path
from spegel_consul.sidecar import heap

def mapped():  # KiB of machine code in memory
    smaps = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(r"^\\S+ r-xp (?:.*\\n)+?Rss: +(\\d+)", smaps, re.MULTILINE)))

before = mapped()
heap.unmap_code(ctypes.CDLL(None))
after = mapped()
assert after < 0.8 * before, (before, after)
assert hashlib.sha256(b"a").hexdigest().startswith("ca978112")
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_system_without_the_call_or_the_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heap.unmap_code(SimpleNamespace())
    monkeypatch.setattr(heap, "_MAPPINGS", Path("/nonexistent/smaps"))
    heap.unmap_code(SimpleNamespace(madvise=lambda *given: pytest.fail(f"called with {given}")))


async def test_late_imports_are_frozen_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    freezes: list[float] = []
    monkeypatch.setattr(heap, "freeze", lambda: freezes.append(trio.current_time()))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(heap.keep_small)
        await trio.sleep(1.5 * heap.EVERY)
        assert freezes == []
        for number in range(heap.LATE + 1):
            monkeypatch.setitem(sys.modules, f"late{number}", ModuleType("late"))
        await trio.sleep(3 * heap.EVERY)
        nursery.cancel_scope.cancel()
    assert freezes == [began + 2 * heap.EVERY]


def test_threads_share_one_heap() -> None:
    code = """
import ctypes, re, tempfile, threading
from spegel_consul.sidecar import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p

def heaps():
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
        libc.malloc_info(0, stream)
        libc.fflush(stream)
        file.seek(0)
        return len(re.findall(rb"<heap nr", file.read()))

def in_threads():
    together = threading.Barrier(4)
    def allocate():
        libc.malloc(100_000)
        together.wait()
    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return heaps()

heap.share_one(libc)
assert in_threads() == 1, heaps()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    without = subprocess.run([sys.executable, "-c", code.replace("heap.share_one(libc)", "")], check=False, timeout=60)
    assert without.returncode, "threads have heaps of their own otherwise"


def test_the_heaps_of_another_c_library_are_left_alone() -> None:
    heap.share_one(SimpleNamespace())
