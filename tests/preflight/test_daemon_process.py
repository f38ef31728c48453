"""The process behind a socket, and what its own program says of its configuration."""

from __future__ import annotations

import os
import socket
import struct
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from lab.process import ending

from spegel_consul.preflight import config_dump, daemon_process
from spegel_consul.preflight.config_dump import NoDump
from spegel_consul.preflight.daemon_process import DaemonProcess

LISTEN = (
    "import socket,sys,time; s=socket.socket(1); s.bind(sys.argv[1]); s.listen(); print(flush=True); time.sleep(600)"
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, sock: Path, *words: str, env: dict[str, str] | None = None) -> int:
    """A process named containerd that listens on ``sock``. Returns its pid."""
    program = sock.parent / "containerd"
    program.symlink_to(Path(sys.executable).resolve())
    argv = [program, "-c", LISTEN, sock, *words]
    process = stack.enter_context(ending(Popen(argv, stdout=PIPE, env={**os.environ, **(env or {})})))
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    return process.pid


def test_the_process_that_listens(tmp_path: Path, stack: ExitStack) -> None:
    sock = tmp_path / "c.sock"
    pid = listening(stack, sock, "--config", "/etc/c.toml", env={"HTTP_PROXY": "http://p", "SECRET": "s3cret"})
    found = daemon_process.of_socket(sock, "containerd")
    assert found is not None
    assert found.directory == Path(f"/proc/{pid}")
    assert found.shares_files
    assert found.cwd == Path.cwd()
    assert found.program.resolve() == Path(sys.executable).resolve()
    assert found.flag("config") == "/etc/c.toml"
    assert found.variables(["HTTP_PROXY", "NO_PROXY"]) == {"HTTP_PROXY": "http://p"}
    assert "s3cret" not in repr(found)
    assert daemon_process.of_socket(sock, "dockerd") is None


def test_the_process_of_a_pid_file(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "c.pid"
    assert daemon_process.of_pid_file(path, "containerd") is None
    pid = listening(stack, tmp_path / "c.sock", "--config=/etc/c.toml")
    for text in (f"{pid}\n", f"{pid}"):
        path.write_text(text)
        found = daemon_process.of_pid_file(path, "containerd")
        assert found is not None
        assert (found.flag("config"), found.owner) == ("/etc/c.toml", os.geteuid())
        assert daemon_process.of_pid_file(path, "dockerd") is None
    for text in ("", "x", "0", "-1", "999999999", "\0", "9" * 30):
        path.write_text(text)
        assert daemon_process.of_pid_file(path, "containerd") is None


def test_there_is_no_such_process(tmp_path: Path, stack: ExitStack) -> None:
    assert daemon_process.of_socket(tmp_path / "absent", "containerd") is None
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "own"))
        assert daemon_process.of_socket(tmp_path / "own", "containerd") is None
        own.listen()
        assert daemon_process.of_socket(tmp_path / "own", "containerd") is None
    gone = DaemonProcess(Path("/proc/0"), ("containerd",))
    assert gone.variables(["A"]) is None
    assert not gone.shares_files
    assert gone.cwd == Path("/")


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "/c"],
        ["--config=/c"],
        ["-c", "/c"],
        ["-c=/c"],
        ["-config", "/c"],
        ["-l", "debug", "--config", "/c"],
    ],
)
def test_flags(words: list[str]) -> None:
    assert DaemonProcess(Path("/proc/1"), ("containerd", *words)).flag("config", "c") == "/c"


@pytest.mark.parametrize("words", [[], ["config", "/c"], ["--config"], ["--configs=/c"]])
def test_no_flag(words: list[str]) -> None:
    assert DaemonProcess(Path("/proc/1"), ("containerd", *words)).flag("config", "c") is None


class Program:
    """A process whose program is a script; /proc is imitated by a directory."""

    def __init__(self, tmp_path: Path, script: str) -> None:
        (tmp_path / "exe").write_text(f"#!{sys.executable}\n" + textwrap.dedent(script))
        (tmp_path / "exe").chmod(0o755)
        (tmp_path / "cwd").symlink_to(tmp_path)
        self.process = DaemonProcess(tmp_path, ("containerd",))


def test_a_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@proxy")
    program = Program(
        tmp_path,
        """
        import json, os, sys
        print("level=warning", file=sys.stderr)
        print("argv =", json.dumps(sys.argv[1:]))
        print("cwd =", json.dumps(os.getcwd()))
        print("names =", json.dumps(sorted(os.environ)))
        """,
    )
    document = config_dump.ask(program.process, Path("/etc/c.toml"))
    assert document["argv"] == ["--config", "/etc/c.toml", "config", "dump"]
    assert document["cwd"] == str(tmp_path)
    assert "HTTP_PROXY" not in document["names"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('one\\ncontainerd: no such key')", "^containerd: no such key$"),
        ("import sys; sys.exit('x' * 5000)", "^x{200}$"),
        ("import sys; sys.exit(3)", "^exit status 3$"),
        ("print('[')", "did not print TOML"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "did not print TOML"),
        ("while True: print('x' * 65536)", "more than 4 MiB"),
        ("import sys\nwhile True: print('x' * 65536, file=sys.stderr)", "more than 4 MiB"),
    ],
)
def test_no_dump(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(NoDump, match=reason):
        config_dump.ask(Program(tmp_path, script).process, Path("/c"))


@pytest.mark.parametrize(
    "script", ["import time\ntime.sleep(600)", "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(600)"]
)
def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(config_dump, "_WITHIN", 0.2)
    with pytest.raises(NoDump, match="did not end"):
        config_dump.ask(Program(tmp_path, script).process, Path("/c"))


def test_a_program_that_cant_be_run(tmp_path: Path) -> None:
    with pytest.raises(NoDump, match="can't be run: No such file"):
        config_dump.ask(DaemonProcess(tmp_path, ("containerd",)), Path("/c"))


def test_a_program_of_another_user_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has root ask at a socket of his own must not choose what root runs."""
    sock, ran = tmp_path / "c.sock", tmp_path / "ran"
    monkeypatch.setattr(daemon_process, "_CREDENTIALS", OfAnotherUser())
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(sock))
        own.listen()
        found = daemon_process.of_socket(sock, Path(sys.orig_argv[0]).name)
    assert found is not None
    program = Program(tmp_path, f"open({str(ran)!r}, 'w').close()")
    with pytest.raises(NoDump, match="belongs to user"):
        config_dump.ask(replace(found, directory=program.process.directory), Path("/c"))
    assert not ran.exists()
    config_dump.ask(replace(found, directory=program.process.directory, owner=os.geteuid()), Path("/c"))
    assert ran.exists()


class OfAnotherUser(struct.Struct):
    """The credentials of this process with another user's number."""

    def __init__(self) -> None:
        super().__init__("iII")

    def unpack(self, buffer: bytes) -> tuple[int, ...]:  # type: ignore[override]
        pid, user, group = super().unpack(buffer)
        return pid, user + 1, group
