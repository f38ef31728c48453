"""A sidecar that is asked to stop before it has started ends at once, and in peace."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DEADLINE = 10.0
"""Seconds that a call to containerd may take, of which the first filling of the store needs some."""


def test_sigterm_while_the_store_is_filled(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "spegel_consul", "registry", "--bootstrap-kind=static", "--skip-preflight"]
    argv += [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    argv += [f"--data-dir={tmp_path}", f"--containerd-sock={tmp_path}/c.sock", "--static-bootstrap-peers=127.0.0.1:1"]
    with socket.socket(socket.AF_UNIX) as containerd, (tmp_path / "log").open("wb") as log:
        containerd.bind(f"{tmp_path}/c.sock")
        containerd.listen()
        containerd.settimeout(60)
        with subprocess.Popen(argv, stdout=log, stderr=log) as process:
            try:
                silent, _ = containerd.accept()
                with silent:
                    assert silent.recv(3) == b"PRI"  # it has begun to ask, and is never answered
                    process.send_signal(signal.SIGTERM)
                    asked = time.monotonic()
                    assert process.wait(DEADLINE * 2) == 0
                    assert time.monotonic() - asked < DEADLINE / 2
            finally:
                process.kill()
    said = (tmp_path / "log").read_text()
    assert '"stopping"' in said
    assert '"stopped"' in said
    assert '"started"' not in said
    assert "Traceback" not in said
