"""Short time slices, where the kernel grants them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.process import HANG, ending, until

from spegel_consul.sidecar import time_slice
from tests.sidecar.processes import children, has_started, with_an_empty_layout

GRANTED = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}


def attributes(thread: int = 0) -> tuple[int, ...]:
    """``struct sched_attr`` of a thread, see sched_getattr(2)."""
    found = ctypes.create_string_buffer(time_slice._SCHED_ATTR.size)
    number = _SCHED_GETATTR[os.uname().machine]
    assert ctypes.CDLL(None).syscall(number, thread, found, len(found), 0) == 0
    return time_slice._SCHED_ATTR.unpack(found.raw)


def slice_of(thread: int = 0) -> int:
    """Nanoseconds; 0 on a kernel that has one slice for all."""
    return attributes(thread)[5]


def with_slices_of_the_kernel() -> None:
    """In a child before its program, because this process may run a sidecar's command itself, and children inherit."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    usual = time_slice._SCHED_ATTR.pack(time_slice._SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(time_slice._SCHED_SETATTR[os.uname().machine], 0, usual, 0)


def in_a_thread(do: Callable[[], object]) -> object:
    """The result of ``do`` in a thread that ends with it, because a wish can't be taken back."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(do()))
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_and_those_that_it_starts_ask_for_short_slices() -> None:
    def ask() -> object:
        return time_slice.shorten(), slice_of(), in_a_thread(slice_of)

    wanted = time_slice.SLICE if GRANTED else 0
    assert in_a_thread(ask) == (True, wanted, wanted)


def test_what_the_supervisor_has_chosen_stays() -> None:
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)

    def nicer() -> object:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        return time_slice.shorten(), attributes()[3]

    def batch() -> object:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return time_slice.shorten(), attributes()[1]

    assert in_a_thread(nicer) == (True, nice)
    assert in_a_thread(batch) == (False, os.SCHED_BATCH)


def test_a_machine_that_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "_SCHED_SETATTR", {})
    assert in_a_thread(time_slice.shorten) is False


def test_a_refusal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slice, "_SCHED_SETATTR", {os.uname().machine: 9999})
    assert in_a_thread(time_slice.shorten) is False


def test_all_threads_of_a_sidecar_have_short_slices(tmp_path: Path) -> None:
    argv = with_an_empty_layout(tmp_path, "60s")
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=with_slices_of_the_kernel)
    with ending(started) as guard:
        until(has_started(guard, tmp_path), timeout=HANG, what="it has started")
        (sidecar,) = children(guard.pid)
        threads = [int(each.name) for each in Path(f"/proc/{sidecar}/task").iterdir()]
        assert {slice_of(thread) for thread in threads} == {time_slice.SLICE if GRANTED else 0}
        assert slice_of(guard.pid) != time_slice.SLICE, "the guard has nothing to do soon"
