"""The guard ends a sidecar that hangs, even if it hangs because nobody reads what both say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

HUNG = """
import os, sys, time
from spegel_consul.watchdog import guard
def say(line):
    os.set_blocking(2, True)
    os.write(2, line.encode() * 100)
fd = guard(0.4, say)
os.write(fd, b".")
os.write(1, b"ready\\n")
{hang}
"""


@pytest.mark.parametrize(
    "hang",
    ["time.sleep(60)", "os.write(2, bytes(1 << 22))"],
    ids=["asleep", "blocked on a pipe that nobody reads"],
)
def test_a_hung_sidecar_is_ended(hang: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG.format(hang=hang)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        began = time.monotonic()
        assert process.wait(10) == 1
        assert time.monotonic() - began < 8
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()


STOPPED = """
import os, sys, time
import trio
from spegel_consul.watchdog import beat, guard
async def run():
    with trio.move_on_after(0.2):
        await beat(fd, 0.4)
fd = guard(0.4, print)
trio.run(run)
time.sleep(2)  # as a long way out of the interpreter
"""


def test_a_sidecar_that_has_stopped_may_take_its_time_to_exit() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
