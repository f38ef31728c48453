"""The guard ends a sidecar that hangs, and no other; signals and exit statuses pass through it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab.process import HANG, ending

from spegel_consul.sidecar.guard import Silence

SIDECAR = """
import os, signal, sys, time
import trio
from spegel_consul.sidecar.watchdog import beat, become_guarded
fd = become_guarded({silence})
os.write(fd, b".")
os.write(1, b"%d\\n" % os.getpid())
{then}
"""


@contextmanager
def guarded(
    then: str, silence: float = 0.4, first: str = "", under: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process that was started, which is the guard, and the pid of the sidecar, which does ``then``."""
    program = first + SIDECAR.format(silence=silence, then=then)
    argv = [*under, sys.executable, "-c", program]
    with ending(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)) as guard:
        assert guard.stdout is not None
        yield guard, int(guard.stdout.readline())


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(600)",
        "os.write(2, bytes(1 << 22))",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "while True: pass",
    ],
    ids=["asleep", "blocked on a pipe that nobody reads", "stopped", "turns in circles"],
)
def test_a_hung_sidecar_is_ended(hang: str) -> None:
    with guarded(hang) as (guard, sidecar):
        assert guard.wait(HANG) == 1
        assert not Path(f"/proc/{sidecar}").exists()


def test_the_guard_says_why() -> None:
    with guarded("time.sleep(600)") as (guard, _):
        _, said = guard.communicate(timeout=HANG)
    assert said.startswith(b"spegel-consul: the sidecar has not moved for 0.4 s: ended")


def test_a_sidecar_that_has_stopped_may_take_its_time_to_exit() -> None:
    stopped = """
async def run():
    with trio.move_on_after(0.2):
        await beat(fd, 0.4)
trio.run(run)
time.sleep(2)  # as a long way out of the interpreter
"""
    with guarded(stopped) as (guard, _):
        assert guard.communicate(timeout=HANG) == (b"", b"")
        assert guard.returncode == 0


def test_time_that_the_guard_did_not_see_does_not_count() -> None:
    """As after the machine was suspended. The sidecar was silent for 2 s that the guard has seen, in 20 steps."""
    began = time.monotonic()
    with guarded("time.sleep(600)", silence=2) as (guard, _):
        guard.send_signal(signal.SIGSTOP)
        # on a busy machine it may go on for seconds before it takes the signal
        os.waitid(os.P_PID, guard.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        stopped = time.monotonic()
        time.sleep(3)
        resumed = time.monotonic()
        guard.send_signal(signal.SIGCONT)
        assert guard.wait(HANG) == 1
        seen = (stopped - began) + (time.monotonic() - resumed)
        assert seen > 2 - 2 * 0.1, "at most a step was cut by the stop, and one by the rest of the wait"


SILENCE = 10.0


def steps(state: str, cpu_each: float, beats_every: int = 0) -> int | None:
    """How many steps it takes until the sidecar is ended; None if a day is not enough."""
    patience = Silence(SILENCE)
    assert not patience.ends(True, "S", 0.0)
    for number in range(1, round(86_400 / patience.step)):
        beaten = bool(beats_every) and number % beats_every == 0
        if patience.ends(beaten, state, cpu_each * number):
            return number
    return None


def test_what_counts_as_silence() -> None:
    step = Silence(SILENCE).step
    assert steps("S", 0.0) == steps("T", 0.0) == 21
    assert steps("R", step) == steps("R", step * 2) == 21
    assert steps("R", step / 30) == 601  # a loop without end on a machine with thirty times the work that it can do
    assert steps("R", 0.0) is None  # it gets no CPU
    assert steps("D", 0.0) is None
    assert steps("S", 0.0, beats_every=20) is None
    assert not Silence(SILENCE).ends(False, "S", 1e6)  # nothing was promised before the first beat


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_pass(number: signal.Signals) -> None:
    waits = f"print(signal.sigwait({{{number:d}}}), flush=True); os._exit(7)"
    first = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}])\n"
    with guarded(waits, silence=60, first=first) as (guard, _):
        guard.send_signal(number)
        assert guard.stdout is not None
        assert int(guard.stdout.readline()) == number
        assert guard.wait(HANG) == 7


def test_a_signal_that_ends_the_sidecar_is_in_the_exit_status() -> None:
    with guarded("time.sleep(600)", silence=60) as (guard, sidecar):
        os.kill(sidecar, signal.SIGKILL)
        assert guard.wait(HANG) == 128 + signal.SIGKILL


def test_the_guard_does_not_outlive_the_sidecar_whatever_it_inherits() -> None:
    ignored = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    with guarded("os._exit(7)", silence=60, first=ignored) as (guard, _):
        assert guard.wait(HANG) == 7


def test_the_sidecar_does_not_outlive_its_guard() -> None:
    with guarded("time.sleep(600)", silence=60) as (guard, sidecar):
        watching = os.pidfd_open(sidecar)
        guard.kill()
        assert select.select([watching], [], [], HANG)[0]  # readable when it has ended
        os.close(watching)


@pytest.mark.real  # only root may make namespaces everywhere
def test_pid_1_takes_signals_and_leaves_no_zombies() -> None:
    """As in a container, where all whose parents have ended become its children."""
    orphan = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if os.fork() == 0:
    os._exit(os.fork() and 0)
os.wait()
print("an orphan was left", flush=True)
signal.sigwait({signal.SIGUSR1})
while {name for name in os.listdir("/proc") if name.isdigit()} != {"1", str(os.getpid())}:
    time.sleep(0.01)
"""
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with guarded(orphan, silence=60, under=alone) as (unshare, _):
        assert unshare.stdout is not None
        unshare.stdout.readline()
        (guard,) = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        os.kill(int(guard), signal.SIGUSR1)
        assert unshare.wait(HANG) == 0


def test_where_nothing_may_be_executed_the_guard_stays_as_it_is() -> None:
    with guarded("time.sleep(600)", first="import sys; sys.executable = '/nowhere'\n") as (guard, _):
        assert guard.wait(HANG) == 1


def test_the_guard_is_small() -> None:
    waits = "print(signal.sigwait({signal.SIGUSR1}), flush=True); time.sleep(600)"
    first = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    with guarded(waits, silence=60, first=first) as (guard, _):
        guard.send_signal(signal.SIGUSR1)
        assert guard.stdout is not None
        guard.stdout.readline()  # so it has passed a signal on, after all that it imports
        resident = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{guard.pid}/status").read_text())
        assert resident is not None
        assert int(resident[1]) < 12 << 10  # 10 MiB with Python 3.11
