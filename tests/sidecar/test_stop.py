"""A sidecar that is asked to stop before it has started, or again and again, ends at once, and in peace."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from lab.image import MIB, build
from lab.ports import free_ports
from lab.process import HANG, ending, until, with_sigint

from tests.sidecar.processes import children, has_started, sidecar, with_an_empty_layout


def test_sigterm_while_the_store_is_filled(tmp_path: Path) -> None:
    argv = sidecar(tmp_path, f"--containerd-sock={tmp_path}/c.sock")
    with socket.socket(socket.AF_UNIX) as containerd, (tmp_path / "log").open("wb") as log:
        containerd.bind(f"{tmp_path}/c.sock")
        containerd.listen()
        containerd.settimeout(HANG)
        with ending(subprocess.Popen(argv, stdout=log, stderr=log)) as process:
            silent, _ = containerd.accept()
            with silent:
                assert silent.recv(3) == b"PRI"  # it has begun to ask, and is never answered
                process.send_signal(signal.SIGTERM)
                assert process.wait(HANG) == 0
    said = (tmp_path / "log").read_text()
    assert "has not answered within" not in said, "it waited for the deadline of the call"
    assert '"stopping"' in said
    assert '"stopped"' in said
    assert '"started"' not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silence", ["10s", "0"])
def test_asked_again_and_again_until_it_has_ended(tmp_path: Path, silence: str, asked: signal.Signals) -> None:
    argv = with_an_empty_layout(tmp_path, silence)
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=with_sigint)
    with ending(started) as process:
        until(has_started(process, tmp_path), timeout=HANG, what="it has started")
        while process.poll() is None:
            process.send_signal(asked)
            time.sleep(0.001)
    assert process.returncode == 0
    said = (tmp_path / "log").read_text()
    assert '"stopped"' in said
    assert "Traceback" not in said


@pytest.mark.parametrize("silence", ["10s", "0"])
def test_a_job_in_the_background_does_not_hear_ctrl_c(tmp_path: Path, silence: str) -> None:
    """POSIX shells start such a job with SIGINT ignored, because Ctrl-C is meant for the one in the foreground."""

    def without_sigint() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    argv = with_an_empty_layout(tmp_path, silence)
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=without_sigint)
    with ending(started) as process:
        until(has_started(process, tmp_path), timeout=HANG, what="it has started")
        for pid in (process.pid, *children(process.pid)):
            assert ignores(pid, signal.SIGINT)
            os.kill(pid, signal.SIGINT)
        process.send_signal(signal.SIGUSR1)
        until(lambda: "log level" in (tmp_path / "log").read_text(), timeout=HANG, what="it goes on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0
    assert '"stopped"' in (tmp_path / "log").read_text()


LAST = """
import signal, sys, trio
from spegel_consul import cli
from spegel_consul.sidecar import lifecycle, prepare

class Last(trio.abc.Instrument):
    def after_run(self):
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            print(each.name, signal.getsignal(each) is signal.SIG_IGN)

async def run(settings):
    {does}

run_really, lifecycle.run = trio.run, run
trio.run = lambda *words: run_really(*words, instruments=[Last()])
cli.main()
"""


@pytest.mark.parametrize(("does", "status"), [("pass", 0), ("raise prepare.StartError('no')", 1)])
def test_nothing_is_heard_while_the_event_loop_is_taken_down(tmp_path: Path, does: str, status: int) -> None:
    """A signal would be reported as one that can't be written to a file descriptor, which is closed by then."""
    argv = sidecar(tmp_path, "--hang-timeout=0")[3:]
    program = [sys.executable, "-c", LAST.format(does=does), *argv]
    done = subprocess.run(program, capture_output=True, text=True, timeout=HANG, preexec_fn=with_sigint, check=False)
    assert (done.returncode, done.stdout) == (status, "SIGTERM True\nSIGINT True\nSIGUSR1 True\n"), done.stderr


@pytest.mark.parametrize("silence", ["10s", "0"])
def test_the_log_level_changes_while_the_store_is_filled(tmp_path: Path, silence: str) -> None:
    argv = sidecar(tmp_path, f"--containerd-sock={tmp_path}/c.sock", f"--hang-timeout={silence}")
    with socket.socket(socket.AF_UNIX) as containerd, (tmp_path / "log").open("wb") as log:
        containerd.bind(f"{tmp_path}/c.sock")
        containerd.listen()
        containerd.settimeout(HANG)
        with ending(subprocess.Popen(argv, stdout=log, stderr=log)) as process:
            silent, _ = containerd.accept()
            with silent:
                process.send_signal(signal.SIGUSR1)
                until(lambda: has_changed_level(process, tmp_path), timeout=HANG, what="the level has changed")
                process.send_signal(signal.SIGTERM)
                assert process.wait(HANG) == 0
    assert '"stopped"' in (tmp_path / "log").read_text()


def test_the_log_level_changes_while_the_last_transfer_ends(tmp_path: Path) -> None:
    app = build(tmp_path / "app", "docker.io/library/app:v1", [32 * MIB], 1)  # more than a connection's buffers take
    layer = app.amd64.layers[1]
    argv = sidecar(tmp_path, f"--layout-path={app.layout}")
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(argv, stdout=log, stderr=log)
    with ending(started) as process:
        until(has_started(process, tmp_path), timeout=HANG, what="it has started")
        (port,) = re.findall(r'"registry": "http://127.0.0.1:(\d+)"', (tmp_path / "log").read_text())
        client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=HANG)
        client.request("GET", f"/v2/library/app/blobs/{layer}?ns=docker.io")
        with closing(client), client.getresponse() as answer:
            assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            until(lambda: '"stopping"' in (tmp_path / "log").read_text(), timeout=HANG, what="it stops")
            process.send_signal(signal.SIGUSR1)
            until(lambda: has_changed_level(process, tmp_path), timeout=HANG, what="the level has changed")
            assert f"sha256:{hashlib.sha256(answer.read()).hexdigest()}" == layer
        assert process.wait(HANG) == 0


@pytest.mark.parametrize("silence", ["10s", "0"])
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, silence: str) -> None:
    (port,) = free_ports(1)
    argv = [*with_an_empty_layout(tmp_path, silence), f"--registry-addr=127.0.0.1:{port}"]

    def lives() -> bool:
        assert process.poll() is None
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)
        with closing(client), suppress(OSError):
            client.request("GET", "/readyz")
            return client.getresponse().status == 200
        return False

    with Path("/dev/full").open("wb") as full:
        started = subprocess.Popen(argv, stdout=full, stderr=full)
    with ending(started) as process:
        until(lives, timeout=HANG, what="it is ready")
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert lives()
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == 0


def has_changed_level(process: subprocess.Popen[bytes], tmp_path: Path) -> bool:
    said = (tmp_path / "log").read_text()
    assert process.poll() is None, said
    return '"log level changed"' in said


def ignores(pid: int, number: signal.Signals) -> bool:
    """As proc(5) tells it."""
    (mask,) = re.findall(r"^SigIgn:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(int(mask, 16) >> (number - 1) & 1)
