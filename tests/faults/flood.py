# An open loop: connections are made at a fixed rate, however long the earlier ones take, as a client does that has gone
# wild.  Each asks for a digest that nobody has, which is what costs a mirror most.
#
# It runs on the attacker's node as a program of its own:
#
#   python -m tests.faults.flood HOST PORT --rate 533 --seconds 10 [--source ADDRESS ...] [--how miss]

"""Clients that ask too much, from one address or from many."""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

HOWS = ("miss", "kept", "half", "slow", "tls", "tls-half", "metrics")
_PIPELINED = 20
_SLOW_STEP = 0.5  # seconds between two pieces of a slow head
_MOST = 15_000  # connections that stand at a time


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    began: float
    unsent: bytes
    awaited: int
    next_at: float = 0.0
    got: bytes = b""


@dataclass
class Flood:
    """What was made of ``host`` and ``port`` for ``seconds``."""

    host: str
    port: int
    rate: float
    seconds: float
    how: str
    sources: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Return when the time is over; what still waits then is closed."""
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._slow: deque[_Client] = deque()
        self._number = 0
        self._from = cycle(self.sources or [""])
        self._tls = ssl._create_unverified_context() if self.how.startswith("tls") else None
        began = time.monotonic()
        while (now := time.monotonic()) < began + self.seconds:
            due = int((now - began) * self.rate) - self._number
            for _ in range(min(due, 200)):
                self._open(now)
            for fd, events in self._poll.poll(0.002, 512):
                self._step(self._clients[fd], events)
            self._drip(now)
        self.counts["unanswered"] += len(self._clients)
        for client in list(self._clients.values()):
            self._close(client)

    def summary(self) -> dict[str, object]:
        waits = sorted(self.waits) or [0.0]
        return {
            **self.counts,
            "rate": round(self._number / self.seconds),
            "p50_ms": round(waits[len(waits) // 2] * 1000),
            "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000),
        }

    def _open(self, now: float) -> None:
        self._number += 1
        if len(self._clients) >= _MOST:
            self.counts["not made"] += 1
            return
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        sock.setblocking(False)
        if source := next(self._from):
            sock.bind((source, 0))
        try:
            code = sock.connect_ex((self.host, self.port))
        except OSError as exc:
            code = exc.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            self.counts[errno.errorcode.get(code, str(code))] += 1
            sock.close()
            return
        request, awaited = self._request()
        client = _Client(sock, now, request, awaited)
        self._clients[sock.fileno()] = client
        self._poll.register(sock, select.EPOLLOUT)

    def _request(self) -> tuple[bytes, int]:
        def one() -> bytes:
            path = (
                b"/metrics"
                if self.how == "metrics"
                else b"/v2/library/app/blobs/sha256:" + os.urandom(32).hex().encode()
            )
            return b"GET %b?ns=docker.io HTTP/1.1\r\nHost: x\r\nUser-Agent: flood\r\n\r\n" % path

        if self.how in ("half", "tls-half"):
            return b"", 1
        if self.how == "kept":
            return b"".join(one() for _ in range(_PIPELINED)), 1 << 30
        return one(), 1

    def _step(self, client: _Client, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._send(client)
            else:
                self._receive(client)
        except BlockingIOError:
            return
        except OSError as exc:
            self.counts[errno.errorcode.get(exc.errno or 0, "tls")] += 1
            self._close(client)

    def _send(self, client: _Client) -> None:
        if error := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if self._tls is not None and self.how != "tls-half" and not isinstance(client.sock, ssl.SSLSocket):
            self._wrap(client)
            return
        if self.how == "slow":
            client.next_at = time.monotonic()
            self._slow.append(client)
        else:
            sent = client.sock.send(client.unsent) if client.unsent else 0
            client.unsent = client.unsent[sent:]
            if client.unsent:
                return
        self._poll.modify(client.sock, select.EPOLLIN)

    def _wrap(self, client: _Client) -> None:
        assert self._tls is not None
        # a handshake is short: the few of them that this thread waits for are as many as one client does
        client.sock.settimeout(2)
        fd = client.sock.fileno()
        self._poll.unregister(fd)
        del self._clients[fd]
        try:
            client.sock = self._tls.wrap_socket(client.sock)
            client.sock.sendall(client.unsent)
        except OSError:
            client.sock.close()
            self.counts["tls"] += 1
            return
        client.sock.setblocking(False)
        self._clients[client.sock.fileno()] = client
        self._poll.register(client.sock, select.EPOLLIN)

    def _drip(self, now: float) -> None:
        while self._slow and self._slow[0].next_at <= now:
            client = self._slow.popleft()
            if client.sock.fileno() < 0 or not client.unsent:
                continue
            try:
                client.sock.send(client.unsent[:4])
            except OSError:
                continue
            client.unsent = client.unsent[4:]
            client.next_at = now + _SLOW_STEP
            self._slow.append(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.sock.recv(65536)
        except ssl.SSLWantReadError:
            return
        if not data:
            self.counts["closed"] += 1
            self._close(client)
            return
        for status in _statuses(client.got + data):
            self.counts[status] += 1
            client.awaited -= 1
        client.got = data[-8:]
        self.waits.append(time.monotonic() - client.began)
        if client.awaited <= 0:
            self._close(client)
        elif self.how == "kept":
            client.began = time.monotonic()
            client.sock.send(self._request()[0][:4000])

    def _close(self, client: _Client) -> None:
        self._clients.pop(client.sock.fileno(), None)
        client.sock.close()


def _statuses(data: bytes) -> Iterator[str]:
    at = 0
    while (at := data.find(b"HTTP/1.1 ", at)) >= 0:
        status = data[at + 9 : at + 12]
        if len(status) == 3:
            yield status.decode("latin-1")
        at += 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=533.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--how", choices=HOWS, default="miss")
    parser.add_argument("--source", action="append", default=[])
    given = parser.parse_args()
    flood = Flood(given.host, given.port, given.rate, given.seconds, given.how, given.source)
    flood.run()
    print(json.dumps(flood.summary()))


if __name__ == "__main__":
    main()
