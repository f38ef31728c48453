"""Reading /proc."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from lab.process import ending

from bench import proc

TICK = os.sysconf("SC_CLK_TCK")


def test_cpu_counts_ended_children_and_survives_odd_names() -> None:
    stat = f"7 (a ) 1 2) S 1 1 1 0 -1 4 0 0 0 0 {TICK} {2 * TICK} {3 * TICK} {4 * TICK} 20 0 1 0 9 0 0"
    assert proc.parse_cpu(stat) == pytest.approx(10.0)


def test_rss() -> None:
    assert proc.parse_rss("Name:\tx\nVmHWM:\t   99 kB\nVmRSS:\t   12 kB\n") == 12 << 10
    assert proc.parse_rss("Name:\tzombie\n") == 0


def test_busy_leaves_out_waiting_for_disks_and_stolen_time() -> None:
    line = "cpu  " + " ".join(str(n * TICK) for n in (1, 2, 3, 10, 5, 1, 1, 50, 0, 0)) + "\ncpu0 0 0\n"
    assert proc.parse_busy(line) == (8.0, 23.0)


def test_tree_and_a_process_that_is_gone() -> None:
    with ending(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)) as child:
        assert child.pid in proc.tree(os.getpid())
    assert proc.cpu_seconds(child.pid) == 0
    assert proc.rss(child.pid) == 0


def test_gate_does_not_wait_beyond_its_budget() -> None:
    gate = proc.Gate(10.0, 0.0)
    assert not gate.wait()
