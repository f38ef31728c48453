"""What a whole sidecar weighs, how fast it starts, and how it ends while a client does not read."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from bench import proc
from bench.content import MIB, Content
from bench.process import Server, ServerError
from bench.rounds import Client
from bench.workload import Workload

CONNECTIONS = 16
_SETTLE = 1.0
_LOOK = 0.02
_STALL = 0.5
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB; ``growth`` is the highest seen during the transfers beyond ``idle``."""

    idle: float
    growth: float
    transferred: float


def memory(server: Server, client: Client, seconds: float) -> Memory:
    """RSS of a server, idle and while 16 connections get 1 GiB each, for ``seconds`` at most.

    Idle means started, answered one manifest and one small blob, and waited a second. Raises ServerError if a transfer
    failed, because then the memory says nothing.
    """
    for of in ("manifest", "1 MiB"):
        client.run(server, Workload("memory", of, 1), 10.0, requests=1)
    time.sleep(_SETTLE)
    idle = highest = proc.rss(server.pid)
    piece = client.content.pieces["1 GiB"]
    command = [str(client.binary), str(server.port), str(CONNECTIONS), f"{seconds:g}", "GET", piece.target]
    with subprocess.Popen([*command, str(CONNECTIONS)], stdout=subprocess.PIPE, text=True) as drain:
        try:
            until = time.monotonic() + seconds + _PATIENCE
            while drain.poll() is None:
                if time.monotonic() > until:
                    raise ServerError(f"{server.name}: the client did not end")
                highest = max(highest, proc.rss(server.pid))
                time.sleep(_LOOK)
            assert drain.stdout is not None
            out = drain.stdout.read()
        finally:
            drain.kill()
    return Memory(idle / MIB, (highest - idle) / MIB, _transferred(server, drain.returncode, out) / MIB)


def _transferred(server: Server, status: int, out: str) -> int:
    """Bytes that the client got, of its exit ``status`` and what it printed. Raises ServerError."""
    found = json.loads(out) if status == 0 else {}
    if status or found["errors"] or found["bad_status"] or not found["bytes"]:
        server.check()
        raise ServerError(f"{server.name}: the transfers failed: {out.strip() or f'the client ended with {status}'}")
    return int(found["bytes"])


class StalledStop:
    """SIGTERM for a server while a client has asked for 1 GiB and does not read it.

    Inside of the context the server only waits, so other things can be done; :meth:`seconds` waits for its end.
    """

    def __init__(self, server: Server, content: Content) -> None:
        self._server = server
        self._reader = socket.socket()
        self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._reader.settimeout(10.0)
        self._piece = content.pieces["1 GiB"]
        self._began = 0.0
        self._ended: float | None = None
        self._waiter = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> StalledStop:
        server = self._server
        self._reader.connect(("127.0.0.1", server.port))
        request = f"GET {self._piece.target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        self._reader.sendall(request.encode())
        if b" 200 " not in self._reader.recv(64):
            raise ServerError(f"{server.name}: the reader that was to stall got no answer")
        time.sleep(_STALL)
        self._began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        self._waiter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def seconds(self) -> float:
        """Seconds from the signal to the exit; infinite if there was none within a minute."""
        self._waiter.join(max(0.0, self._began + _PATIENCE - time.monotonic()))
        return float("inf") if self._ended is None else self._ended - self._began

    def _wait(self) -> None:
        self._server.process.wait()
        self._ended = time.monotonic()


def graceful_timeout() -> float | None:
    """Seconds that the sidecar gives to transfers in flight when it is told to stop; None if it does not say."""
    code = "from spegel_consul.http.server.serve import DRAIN_TIMEOUT; print(DRAIN_TIMEOUT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_PATIENCE)
    return float(done.stdout) if done.returncode == 0 else None
