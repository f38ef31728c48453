# A socket belongs to the network namespace in which it was made, for all its life.  So a test talks HTTP from a
# node by making the socket while its thread is in the node's namespace, and is back before anything else runs.
# Programs are started by nsenter: ip netns exec would also replace /sys, and runc finds no cgroups there.

"""One network namespace, and what a test does in it."""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.process import Failed, Process, run, until

NETNS_DIR = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Netns:
    """A network namespace by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<netns {self.name}>"

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.name

    def add(self) -> None:
        run(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")

    def delete(self) -> None:
        """End all that still runs in it, then remove it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.pids(), timeout=10, what=f"nothing runs in {self} any more")
        run(["ip", "netns", "delete", self.name])

    def pids(self) -> list[int]:
        """Processes whose main thread is in this namespace."""
        return [int(pid) for pid in run(["ip", "netns", "pids", self.name]).split()]

    def ip(self, *words: str) -> str:
        return run(["ip", "-n", self.name, *words])

    def inside(self, argv: Sequence[str | Path], *, private_mounts: bool = False) -> list[str]:
        """The command line that runs ``argv`` here, without a process between.

        With ``private_mounts`` what it mounts is seen by nobody else and vanishes with it.
        """
        words = ["nsenter", f"--net={self.path}"]
        if private_mounts:
            words += ["unshare", "--mount", "--propagation", "private"]
        return [*words, *(str(word) for word in argv)]

    def run(self, *argv: str | Path, timeout: float = 20, env: Mapping[str, str] | None = None) -> str:
        return run(self.inside(argv), timeout=timeout, env=env)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        private_mounts: bool = False,
    ) -> Process:
        return Process(name, self.inside(argv, private_mounts=private_mounts), log_path=log_path, env=env)

    def connect(self, host: str, port: int, timeout: float = 5) -> socket.socket:
        """A TCP connection that leaves from here. Raises OSError."""
        with self._entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def request(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = 5,
    ) -> Response:
        """One HTTP request on a connection of its own. Raises OSError, http.client.HTTPException."""
        connection = http.client.HTTPConnection(host, port)
        connection.sock = self.connect(host, port, timeout)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            with connection.getresponse() as answer:
                return Response(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def ping(self, host: str, timeout: float = 1) -> bool:
        """Whether one packet comes back in time."""
        try:
            self.run("ping", "-n", "-c1", f"-W{timeout}", host)
        except Failed:
            return False
        return True

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with Path("/proc/thread-self/ns/net").open("rb") as home, self.path.open("rb") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())


def _setns(fd: int) -> None:
    # os.setns came with Python 3.12
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
