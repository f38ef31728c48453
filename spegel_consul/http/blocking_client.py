"""HTTP client of the commands: one request on one connection, without an event loop.

A command asks one question and ends, so it needs neither Trio nor httpx, whose imports take longer than the question.
h11 parses the answer; it limits a head to 100 KiB. Only HTTP/1.1 without proxies, redirects and cookies is spoken.

Each wait for the other side has a deadline: ``connect`` seconds for the connection, ``silence`` seconds for each piece,
and ``within`` seconds for all of it. A rule about the requests of commands belongs here; the sidecar's own clients use
:mod:`spegel_consul.http.bounded_client`.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import urlencode, urlsplit

import h11

from spegel_consul import __version__
from spegel_consul.error_words import in_words
from spegel_consul.http.answer_bounds import BoundedBody
from spegel_consul.peers import host_port

_PIECE = 1 << 16
_MAX_HEAD = 100 << 10


class NoAnswer(Exception):
    """The server can't be reached, or does not speak HTTP; the message is one line.

    ``answered``: the server accepted the connection, and what it sent is no HTTP.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class AnswerLate(Exception):
    """The server accepted the connection and did not answer in time."""


class Answer:
    """The answer to one request; its body has not been received yet."""

    def __init__(self, exchange: _Exchange, head: h11.Response) -> None:
        self._exchange = exchange
        self.status = head.status_code
        self._headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}

    def header(self, name: str) -> str:
        """The value of the field ``name`` (lower case), empty if there is none."""
        return self._headers.get(name, "")

    def pieces(self) -> Iterator[bytes]:
        """The body's bytes, as they arrive. Raises NoAnswer if it is cut, AnswerLate."""
        while not isinstance(event := self._exchange.event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    def body(self, limit: int) -> bytes:
        """The whole body. Raises AnswerRefused if it exceeds the bounds for ``limit`` bytes, NoAnswer, AnswerLate."""
        body = BoundedBody(limit, self.header("content-encoding"), self.header("content-length"))
        for piece in self.pieces():
            if not body.add(piece):
                break
        return body.whole()


@contextmanager
def ask(
    method: str,
    url: str,
    *,
    connect: float,
    silence: float,
    within: float = math.inf,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """Send a request without a body; ``url`` is an http or https URL. Raises NoAnswer, AnswerLate."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    fields = {
        "Host": host_port(host, parts.port) if parts.port else host_port(host, port).rpartition(":")[0],
        "User-Agent": f"spegel-consul/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
        **(headers or {}),
    }
    if method != "GET":
        fields["Content-Length"] = "0"
    target = (parts.path or "/") + (f"?{urlencode(params)}" if params else "")
    deadline = time.monotonic() + within
    with closing(_connected(host, port, tls, min(connect, within))) as sock:
        exchange = _Exchange(sock, silence, deadline)
        exchange.send(h11.Request(method=method, target=target, headers=list(fields.items())))
        while not isinstance(event := exchange.event(), h11.Response):
            pass  # informational
        yield Answer(exchange, event)


def _connected(host: str, port: int, tls: bool, within: float) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), within)
        if not tls:
            return sock
        import ssl

        try:
            return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
    except TimeoutError:
        raise NoAnswer(f"no connection within {within:g} s") from None
    except (OSError, UnicodeError) as exc:
        raise NoAnswer(in_words(exc)) from None


class _Exchange:
    """h11 on a socket; each wait ends with the silence or the deadline, whichever is first."""

    def __init__(self, sock: socket.socket, silence: float, deadline: float) -> None:
        self._sock, self._silence, self._deadline = sock, silence, deadline
        self._answered = False
        self._speaks_http = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)

    def send(self, request: h11.Request) -> None:
        sent = (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")
        with self._wait():
            self._sock.sendall(sent)

    def event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    with self._wait():
                        data = self._sock.recv(_PIECE)
                    self._answered = self._answered or bool(data)
                    self._http.receive_data(data)
                elif isinstance(event, h11.Event):
                    if isinstance(event, h11.ConnectionClosed):
                        raise NoAnswer("the server closed the connection without an answer")
                    self._speaks_http = True
                    return event
                else:
                    raise NoAnswer("the server sent more than one answer")
            except h11.RemoteProtocolError as exc:
                raise NoAnswer(str(exc), answered=self._answered and not self._speaks_http) from None

    @contextmanager
    def _wait(self) -> Iterator[None]:
        left = min(self._silence, self._deadline - time.monotonic())
        if left <= 0:
            raise AnswerLate
        self._sock.settimeout(left)
        try:
            yield
        except TimeoutError:
            raise AnswerLate from None
        except OSError as exc:
            raise NoAnswer(in_words(exc)) from None
