"""The guard: ends the sidecar when its event loop hangs, and passes signals and the exit status on.

:mod:`spegel_consul.sidecar.watchdog` executes this file in the process that a supervisor knows, with the sidecar as its
child::

    python -I -S guard.py PID FD SILENCE

The file imports almost nothing, so the guard needs 9 MiB, of which less than 3 are private. It sleeps until a signal
arrives or a step ends. All signals that can be passed on are blocked since before the fork and fetched here. So no
signal is lost, even by pid 1, and no handler interrupts the guard.

The guard ends a sidecar only if the sidecar could have sent a heartbeat. So the guard does not read a clock; it counts
steps that it has slept through itself, and a suspended machine or a frozen container costs one step. The part of a step
that counts depends on the state of the event loop's thread: all of it if the thread waits or was stopped; its CPU time
if the thread wants to run, because a busy machine may give it little; nothing if the thread waits for the disk or for
memory, because no signal would end it then.

A new rule about the detection of a hang belongs in ``Silence``. New imports do not belong here.
"""

from __future__ import annotations

import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    import signal
    from typing import NoReturn
else:  # the modules in C beneath them, because their own imports (enum, collections) cost a megabyte, as typing would
    import _signal as signal
    import posix as os

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""Blocked by the process that starts the guard."""

EXIT_HUNG = 1
_STEPS = 20
_LAST_WORDS = 1.0  # seconds


class Silence:
    """The time without heartbeat, counted in steps of ``step`` seconds; more than ``silence`` seconds is a hang."""

    def __init__(self, silence: float) -> None:
        self.step = silence / _STEPS
        self._silence = silence
        self._silent = 0.0
        self._started = False
        self._cpu = 0.0

    def ends(self, beaten: bool, state: str, cpu: float) -> bool:
        """Whether the sidecar hangs; called once after each step.

        ``state`` and ``cpu``, the state of proc(5) and the CPU seconds so far, are those of the event loop's thread.
        """
        used, self._cpu = cpu - self._cpu, cpu
        if beaten:
            self._started, self._silent = True, 0.0
        elif state == "R":
            self._silent += min(used, self.step)
        elif state != "D":
            self._silent += self.step
        return self._started and self._silent > self._silence


def watch(pid: int, beats: int, silence: float) -> NoReturn:
    """Wait for the child ``pid`` and exit with its status; kill it if the pipe ``beats`` is silent for too long.

    ``silence``: seconds, counted from the first heartbeat; the pipe's end ends the counting.
    """
    os.set_blocking(beats, False)
    watched, ending = Silence(silence), False
    while True:
        received = signal.sigtimedwait(SIGNALS, watched.step)
        if received is None:
            try:
                beaten = bool(os.read(beats, 4096))
                ending = not beaten
            except BlockingIOError:
                beaten = False
            if watched.ends(beaten or ending, *_look(pid)):
                _end(pid, silence)
        elif received.si_signo == signal.SIGCHLD:
            _reap(pid)
        else:
            os.kill(pid, received.si_signo)


def _look(pid: int) -> tuple[str, float]:
    """State and CPU seconds of the event loop's thread, from proc(5); sleeping (S) if the file can't be read."""
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return "S", 0.0
    return words[0], (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _reap(pid: int) -> None:
    """Reap all children, because pid 1 inherits orphans too; exit when the sidecar has ended."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if not ended:
            return


def _end(pid: int, silence: float) -> NoReturn:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # if the sidecar hung because its log is not read, this line would not be read either: wait for it only a moment
    if select.select([], [2], [], _LAST_WORDS)[1]:
        said = f"spegel-consul: the sidecar has not moved for {silence:g} s: ended, so that runtimes go on without it\n"
        os.write(2, said.encode())
    os._exit(EXIT_HUNG)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
