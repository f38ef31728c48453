# A runtime waits for a mirror that accepts its connection and says nothing: more than a minute was measured with each
# of them, and no setting of hosts.toml changes that.  A mirror that is dead costs nothing, because the kernel refuses
# the connection.  So a mirror that hangs has to die, and it can't be the one to see it.
#
# The process that was started makes another one, which becomes the sidecar, and turns into the guard itself (guard.py).
# So whoever started it has the guard's pid, whose end is the sidecar's, and starts both again.  In a container the
# guard is pid 1, which nobody in there could kill.  What stops both, such as a frozen container, is beyond it.

"""The sidecar's side of its guard: starts it, and lets it know that the event loop turns."""

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
    """Fork. In the sidecar returns the descriptor to beat on; the caller's own process never returns.

    ``silence``: seconds without a beat that are too many, counted from the first beat.
    """
    reading, writing = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, guard.SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some leave it, it would hide the sidecar's end
    guard_pid = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.set_inheritable(reading, True)
        # where nothing may be executed it stays as large as it is
        with suppress(OSError):
            words = [sys.executable, "-I", "-S", guard.__file__, str(pid), str(reading), str(silence)]
            os.execv(sys.executable, words)  # noqa: S606
        guard.watch(pid, reading, silence)
    os.close(reading)
    # the sidecar shall not outlive the guard, even if that is killed
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard_pid:
        os._exit(guard.EXIT_HUNG)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.set_blocking(writing, False)
    return writing


async def beat(fd: int, silence: float) -> None:
    """Tell the guard that the event loop turns, until cancelled."""
    try:
        while True:
            # a guard that does not read was stopped itself; one that is gone takes us along
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(fd, b".")
            await trio.sleep(silence / _BEATS)
    finally:
        # the ports are closed by now, so nobody waits for what is left, which takes long where CPUs are short
        os.close(fd)
