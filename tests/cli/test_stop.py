"""A sidecar that is asked to stop before it has started, or again and again, ends at once, and in peace."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE = 10.0
"""Seconds that a call to containerd may take, of which the first filling of the store needs some."""


def sidecar(data: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "spegel_consul", "registry", "--bootstrap-kind=static", "--skip-preflight"]
    argv += [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    return [*argv, f"--data-dir={data}", "--static-bootstrap-peers=127.0.0.1:1", *more]


def test_sigterm_while_the_store_is_filled(tmp_path: Path) -> None:
    argv = sidecar(tmp_path, f"--containerd-sock={tmp_path}/c.sock")
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


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silence", ["10s", "0"])
def test_asked_again_and_again_until_it_has_ended(tmp_path: Path, silence: str, asked: signal.Signals) -> None:
    argv = sidecar(tmp_path, "--store=layout", f"--layout-path={tmp_path}", f"--hang-timeout={silence}")
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while '"started"' not in (tmp_path / "log").read_text():
                assert time.monotonic() < deadline
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            while process.poll() is None:
                assert time.monotonic() < deadline
                process.send_signal(asked)
                time.sleep(0.001)
        finally:
            process.kill()
    assert process.returncode == 0
    said = (tmp_path / "log").read_text()
    assert '"stopped"' in said
    assert "Traceback" not in said


LAST_MOMENT = """
import signal
from trio._core import _wakeup_socketpair
from spegel_consul.cli import main

close = _wakeup_socketpair.WakeupSocketpair.close


def tell_and_close(self):
    print("a signal would be written to", signal.set_wakeup_fd(-1), flush=True)
    close(self)


_wakeup_socketpair.WakeupSocketpair.close = tell_and_close
main()
"""


def test_no_signal_is_written_to_a_socket_that_is_closed(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    argv = sidecar(tmp_path, "--store=layout", f"--layout-path={tmp_path}", "--hang-timeout=0")[3:]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen([sys.executable, "-c", LAST_MOMENT, *argv], stdout=log, stderr=log) as process,
    ):
        try:
            while '"started"' not in (tmp_path / "log").read_text():
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    said = (tmp_path / "log").read_text()
    assert '"stopped"' in said
    assert set(re.findall("written to (.*)", said)) == {"-1"}
