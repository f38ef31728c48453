"""The demonstration stops its nodes, however often it is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab.ports import free_port
from lab.process import HANG, ending


def nodes_of(home: Path) -> list[str]:
    """The process ids of sidecars whose data is below ``home``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"registry" in words and os.fsencode(home) in words:
            found.append(path.parent.name)
    return found


def test_a_second_signal_leaves_no_node_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spegel_consul", "dev", f"--port={free_port()}"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)) as dev:
        assert dev.stdout is not None
        before = next(line for line in dev.stdout if "until Ctrl-C" in line)
        assert len(nodes_of(tmp_path)) >= 3, before
        dev.send_signal(signal.SIGTERM)
        time.sleep(0.05)  # a signal that has not been seen yet would be the same one
        for _ in range(20):
            dev.send_signal(signal.SIGTERM)
        assert dev.wait(HANG) == 0
        assert dev.stdout.read().endswith("stopped\n")
    assert nodes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
