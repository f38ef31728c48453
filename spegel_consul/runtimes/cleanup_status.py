"""Status of a cleanup: each node serves it, and ``cleanup-wait`` polls it on all nodes.

A cleanup runs on every node as a job of its own, and the operator must know when the last node is done before the job
is stopped. So a cleanup that is done answers at /readyz, and ``cleanup-wait`` asks all addresses of a name. A rule
about the end of a cleanup belongs here; the restore belongs to :mod:`spegel_consul.runtimes.backup`.
"""

from __future__ import annotations

import http.client
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from spegel_consul.error_words import in_words
from spegel_consul.http.server.listen import ListenAddress, listen

_PROBE_TIMEOUT = 1.0


class _StatusHandler(BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:
        status = 200 if self.path == "/readyz" else 404
        body = b"cleaned up\n" if status == 200 else b"expected /readyz\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve_cleaned(address: ListenAddress) -> None:
    """Answer at ``/readyz`` until SIGTERM or SIGINT. Raises ListenError."""
    sock = listen(address, "--addr")
    sock.setblocking(True)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    server = ThreadingHTTPServer(sock.getsockname()[:2], _StatusHandler, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = sock
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        signal.signal(signal.SIGTERM, before)


def wait_cleaned(endpoint: ListenAddress, threshold: int, period: float, timeout: float) -> str | None:
    """Wait until all addresses of ``endpoint`` have answered ``threshold`` times in a row, ``period`` seconds apart.

    Returns None, or the reason as one line after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    in_a_row = 0
    while True:
        problem = _probe_all(endpoint)
        in_a_row = in_a_row + 1 if problem is None else 0
        if in_a_row >= threshold:
            return None
        if time.monotonic() + period > deadline:
            problem = problem or f"only {in_a_row} of {threshold} times in a row"
            return f"not cleaned up on all nodes after {timeout:g} s: {problem}"
        time.sleep(period)


def _probe_all(endpoint: ListenAddress) -> str | None:
    try:
        infos = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        return f"{endpoint.host} can't be resolved: {in_words(exc)}"
    addresses = sorted({str(info[4][0]) for info in infos})
    with ThreadPoolExecutor(10) as pool:
        problems = [problem for problem in pool.map(lambda host: _probe(host, endpoint.port), addresses) if problem]
    return problems[0] if problems else None


def _probe(host: str, port: int) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE_TIMEOUT)
    try:
        connection.request("GET", "/readyz")
        with connection.getresponse() as answer:
            return None if answer.status == 200 else f"{host} answered {answer.status}"
    except (OSError, http.client.HTTPException) as exc:
        return f"{host} did not answer: {in_words(exc)}"
    finally:
        connection.close()
