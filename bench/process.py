# A server under test is one child process, pinned from its first instruction, and it is stopped by its pid whatever
# happens: at the end of its context, or by the kernel when this process dies.

"""Servers as child processes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import proc

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServerError(Exception):
    """A server did not start or went away; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """How one server is started: it is ready when ``ready`` answers 200 on ``port``, or at once without ``ready``.

    ``tls``: it has to be asked over TLS.
    """

    name: str
    command: Sequence[str]
    port: int = 0
    ready: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    tls: bool = False


@dataclass(slots=True)
class Server:
    """A running server; ``started_in`` is the seconds from its start to its first 200."""

    program: Program
    process: subprocess.Popen[bytes]
    log: Path
    started_in: float = 0.0

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def port(self) -> int:
        return self.program.port

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raise ServerError if it has ended."""
        if self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise ServerError(f"{self.name} exited with {self.process.returncode}:\n{tail}")

    def wait_ready(self, target: str, timeout: float = START_TIMEOUT, interval: float = 0.005) -> None:
        """Wait until a GET of ``target`` is answered with 200."""
        until = time.monotonic() + timeout
        while (status := get_status(self.port, target, tls=self.program.tls)) != 200:
            self.check()
            if time.monotonic() > until:
                raise ServerError(f"{self.name} is not ready after {timeout:g} s: {target} answered {status}")
            time.sleep(interval)


@contextmanager
def running(programs: Sequence[Program], core: int, logs: Path) -> Iterator[list[Server]]:
    """All of ``programs`` at once on one core, started one after the other, and stopped at the end."""
    servers: list[Server] = []
    try:
        for program in programs:
            servers.append(launch(program, core, logs))
        yield servers
    finally:
        stop(servers)


def launch(program: Program, core: int, logs: Path) -> Server:
    """Start ``program`` and wait until it is ready; the caller has to stop it. Raises ServerError."""
    log = logs / f"{program.name.replace(' ', '-')}.log"

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(program.command),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **program.environment},
            preexec_fn=prepare,
            start_new_session=True,  # Ctrl-C is for us, and we stop them
        )
    server = Server(program, process, log)
    try:
        if program.ready is not None:
            server.wait_ready(program.ready)
    except BaseException:
        stop([server])
        raise
    server.started_in = time.monotonic() - began
    return server


def stop(servers: Sequence[Server]) -> None:
    """Ask them to end, and kill those that don't."""
    for server in servers:
        if server.process.poll() is None:
            server.process.terminate()
    until = time.monotonic() + STOP_TIMEOUT
    for server in servers:
        try:
            server.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            children = proc.tree(server.pid)[1:]
            server.process.kill()
            for child in children:
                os.kill(child, signal.SIGKILL)
            server.process.wait()


def get_status(port: int, target: str, timeout: float = 5.0, *, tls: bool = False) -> int:
    """The status of a GET, 0 if there was no answer; the body is not read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout))
            if tls:
                sock = stack.enter_context(context.wrap_socket(sock))
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return int(sock.recv(64).split(b" ", 2)[1])
    except (OSError, IndexError, ValueError):
        return 0
