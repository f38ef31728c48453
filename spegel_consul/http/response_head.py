"""Reads the head of an HTTP/1.1 answer whose body is framed by its length.

All answers that the mirror can use are framed by their length. So the body needs no parser after the head, and may pass
from socket to socket. This module reads heads in the form in which other nodes and common servers write them. Any other
head is parsed by h11, which implements all of HTTP.

A new rule about the framing of answers belongs here. Rules about their content belong to the caller.
"""

from __future__ import annotations

import re

import h11

from spegel_consul.http.server.request_head import parse_fields
from spegel_consul.lean.dataclass import dataclass

MAX_HEAD = 1 << 16
"""Bytes of the longest accepted head."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5]\d\d)(?: [ \t\x21-\x7e\x80-\xff]*)?\r\n")
_INTERIM = re.compile(rb"HTTP/1\.1 1(?!01)\d\d[^\r\n]*\r\n")
_LENGTH = re.compile(rb"\d{1,19}\Z")
_ODD = frozenset({b"transfer-encoding", b"trailer", b"upgrade"})
_MOST_INTERIM = 8  # bounded, because all interim answers are parsed again whenever more bytes come
_BODYLESS = frozenset({204, 304})


class ReplyError(Exception):
    """The received bytes are no HTTP answer; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The head of an answer; names of ``headers`` are in lower case.

    ``length`` is that of the body in bytes, or 0 if it is not framed by a length; ``body`` is the received part of it;
    ``reusable``: the connection can be used for another request after the body.
    """

    status: int
    headers: dict[bytes, bytes]
    length: int
    body: bytes
    reusable: bool


def without_interim(data: bytes) -> tuple[bytes, int]:
    """Return ``data`` without the complete interim answers (1xx) at its start, and their number."""
    count = 0
    while (line := _INTERIM.match(data)) is not None and (end := data.find(b"\r\n\r\n", line.end() - 2)) >= 0:
        data, count = data[end + 4 :], count + 1
    return data, count


def parse_reply(data: bytes, method: str) -> Reply | None:
    """Return the answer to a request with ``method`` at the start of ``data``, or None if its head is incomplete.

    Raises ReplyError.
    """
    end = data.find(b"\r\n\r\n")
    line = _STATUS_LINE.match(data) if end > 0 else None
    if line is None or line.end() > end + 2:
        return _parse_any(data, method)
    headers = parse_fields(data[line.end() : end]) if line.end() < end else {}
    if headers is None or not _ODD.isdisjoint(headers):
        return _parse_any(data, method)
    status, length = int(line[1]), headers.get(b"content-length", b"")
    connection = headers.get(b"connection", b"keep-alive").lower()
    if not _LENGTH.match(length) or connection not in (b"keep-alive", b"close"):
        return _parse_any(data, method)
    count = 0 if method == "HEAD" or status in _BODYLESS else int(length)
    body = data[end + 4 :]
    # bytes after the body belong to no request, so the connection is not reused
    reusable = connection == b"keep-alive" and len(body) <= count
    return Reply(status, headers, count, body[:count], reusable)


def _parse_any(data: bytes, method: str) -> Reply | None:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    # a request with any target, because only the method matters to the parser
    http.send(h11.Request(method=method, target="/", headers=[("host", "peer")]))
    http.send(h11.EndOfMessage())
    try:
        http.receive_data(data)
        interim = 0
        while isinstance(event := http.next_event(), h11.InformationalResponse):
            interim += 1
            if interim > _MOST_INTERIM:
                raise ReplyError(f"it sent more than {_MOST_INTERIM} interim answers (1xx)")
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Response):
            raise ReplyError("it sent no response")
        headers = dict(event.headers)
        body = b""
        while isinstance(following := http.next_event(), h11.Data):
            body += following.data
    except h11.RemoteProtocolError as exc:
        raise ReplyError(str(exc)) from None
    if method == "HEAD" or event.status_code in _BODYLESS:
        count, framed = 0, True
    else:
        framed = _LENGTH.match(headers.get(b"content-length", b"")) is not None and b"transfer-encoding" not in headers
        count = int(headers[b"content-length"]) if framed else 0
    reusable = framed and http.their_state is not h11.MUST_CLOSE and not http.trailing_data[0]
    reusable = reusable and b"connection" not in headers and event.http_version == b"1.1"
    return Reply(event.status_code, headers, count, body if framed else b"", reusable)
