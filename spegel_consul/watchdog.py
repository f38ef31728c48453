# A runtime waits for a mirror that accepts its connection and says nothing: more than a minute was measured with each
# of them, and no setting of hosts.toml changes that.  A mirror that is dead costs nothing, because the kernel refuses
# the connection.  So a mirror that hangs has to die, and it can't be the one to see it.
#
# The process that was started becomes the guard and does nothing but listen for a byte from the other one, which is
# the sidecar, sent by its event loop.  Silence for long enough ends the sidecar, with SIGKILL, and then the guard, so
# that whoever started it starts it again.  The guard was there first and so is pid 1 where there is one, which nobody
# in a container could kill.  What stops both at once, such as a frozen container, is beyond it.

"""Ends a sidecar whose event loop does not turn any more."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import trio

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_BEATS = 4
EXIT_HUNG = 1
_LAST_WORDS = 1  # seconds


def guard(silence: float, say: Callable[[str], None]) -> int:
    """Fork. In the sidecar returns the descriptor to beat on; the guard never returns, but exits as the sidecar does.

    ``silence``: seconds without a beat that are too many, counted from the first beat; ``say`` is told after the
    sidecar was killed for it.
    """
    reading, writing = os.pipe()
    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        # the sidecar shall not outlive the guard, even if that is killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(EXIT_HUNG)
        os.set_blocking(writing, False)
        return writing
    os.close(writing)
    _watch(pid, reading, silence, say)


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


def _watch(pid: int, reading: int, silence: float, say: Callable[[str], None]) -> NoReturn:
    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    started = False
    missed = 0
    while True:
        # half the time, twice: after this machine itself stood still, the sidecar gets a chance to beat first
        ready, _, _ = select.select([reading], [], [], silence / 2 if started else None)
        if ready:
            started, missed = True, 0
            if not os.read(reading, 4096):
                break  # it has ended, or is about to
        else:
            missed += 1
            if missed == 2:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                # it may have hung because nobody reads what it says, and then nobody reads this
                signal.signal(signal.SIGALRM, lambda *_: os._exit(EXIT_HUNG))
                signal.alarm(_LAST_WORDS)
                say(f"the sidecar has not moved for {silence:g} s: ended, so that runtimes go on without it")
                os._exit(EXIT_HUNG)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(status if status >= 0 else 128 - status)
