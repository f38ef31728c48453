"""The sidecar's side of its guard: starts the guard and sends it heartbeats from the event loop.

A runtime waits for a mirror that accepts its connection and does not answer: more than a minute was measured with each
runtime, and no setting of hosts.toml changes that. A dead mirror costs nothing, because the kernel refuses the
connection. So a sidecar that hangs must be ended, and another process must do it.

The process that was started forks. The child becomes the sidecar, and the parent executes the guard
(:mod:`spegel_consul.sidecar.guard`). So the supervisor has the guard's pid; the guard exits with the sidecar, and the
supervisor restarts both. In a container the guard is pid 1, which no process in the container can kill. The guard can
do nothing where both processes are stopped, as in a frozen container.

A new rule about the heartbeat's sender belongs here; a rule about its absence belongs to the guard.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

import trio

from spegel_consul.sidecar import guard

_PR_SET_PDEATHSIG = 1
_BEATS = 4


def become_guarded(silence: float) -> int:
    """Fork. Returns in the sidecar, with the descriptor for ``beat``; the caller's own process never returns.

    ``silence``: seconds without a heartbeat until the guard ends the sidecar, counted from the first heartbeat.
    """
    reading, writing = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, guard.SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some supervisors leave it, it hides the sidecar's end
    guard_pid = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.set_inheritable(reading, True)
        # if execution is forbidden, the parent becomes the guard without it, and keeps its memory
        with suppress(OSError):
            words = [sys.executable, "-I", "-S", guard.__file__, str(pid), str(reading), str(silence)]
            os.execv(sys.executable, words)  # noqa: S606
        guard.watch(pid, reading, silence)
    os.close(reading)
    # the kernel ends the sidecar with the guard, because without a guard nothing would end a sidecar that hangs
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard_pid:
        os._exit(guard.EXIT_HUNG)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.set_blocking(writing, False)
    return writing


async def beat(fd: int, silence: float) -> None:
    """Send heartbeats to the guard until cancelled. ``fd`` is from ``become_guarded``; ``silence`` is in seconds."""
    try:
        while True:
            # a guard that does not read is stopped itself; the end of a guard ends this process too
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(fd, b".")
            await trio.sleep(silence / _BEATS)
    finally:
        # the ports are closed by now, so no client waits for the rest of the stop, which is slow on a busy machine
        os.close(fd)
