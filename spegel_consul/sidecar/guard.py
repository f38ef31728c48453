# Started by watchdog.py in place of the process that a supervisor knows, with the sidecar as its child:
#
#   python -I -S guard.py PID FD SILENCE
#
# It imports next to nothing, so that it needs 10 MiB, less than half of them its own.  Until a signal or a step's end
# it sleeps; all signals that can be passed on are blocked since before the sidecar was made, and fetched here, so none
# is lost, not even by pid 1, and no handler can come at a bad moment.
#
# Only a sidecar that could have beaten and did not is ended.  So what counts is not what a clock says but steps that
# the guard has slept through itself: a machine that was suspended, or a container that was frozen, costs one step.  And
# of a step counts only what the sidecar's event loop had of it: all, if it waits for something or was stopped;
# the CPU time that it got, if it wants to run, which on a busy machine may be little; nothing, if it waits for the disk
# or for memory, which no signal would end anyway.

"""Ends the sidecar when its event loop does not turn any more, and passes signals and the exit status on."""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn  # which would cost a megabyte

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
"""Blocked by whoever starts the guard."""

EXIT_HUNG = 1
_STEPS = 20
_LAST_WORDS = 1.0  # seconds


class Silence:
    """How long the sidecar has been silent, counted in steps of ``step`` seconds; ``silence`` seconds are too long."""

    def __init__(self, silence: float) -> None:
        self.step = silence / _STEPS
        self._silence = silence
        self._silent = 0.0
        self._started = False
        self._cpu = 0.0

    def ends(self, beaten: bool, state: str, cpu: float) -> bool:
        """After each step; ``state`` and ``cpu`` (seconds in all) are those of the event loop's thread."""
        used, self._cpu = cpu - self._cpu, cpu
        if beaten:
            self._started, self._silent = True, 0.0
        elif state == "R":
            self._silent += min(used, self.step)
        elif state != "D":
            self._silent += self.step
        return self._started and self._silent > self._silence


def watch(pid: int, beats: int, silence: float) -> NoReturn:
    """Wait for ``pid``, a child, and exit as it does; kill it when ``beats``, a pipe, is silent for too long.

    ``silence``: seconds, counted from the first beat; the pipe's end ends the counting.
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
    """State and CPU seconds of the event loop's thread, from proc(5); as if it slept if that can't be read."""
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return "S", 0.0
    return words[0], (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _reap(pid: int) -> None:
    """Also others' children, which pid 1 is given; with the sidecar the guard ends."""
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
    # it may have hung because nobody reads what it says, and then nobody reads this
    if select.select([], [2], [], _LAST_WORDS)[1]:
        said = f"spegel-consul: the sidecar has not moved for {silence:g} s: ended, so that runtimes go on without it\n"
        os.write(2, said.encode())
    os._exit(EXIT_HUNG)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
