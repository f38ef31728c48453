"""Heads of simple requests, read without a general parser.

A simple request is one whole GET or HEAD with well-formed header fields, none of which changes the framing, the
connection or the meaning of the request. The result for anything else is None, and hypercorn gets the same bytes. So
the difficult rules of HTTP are implemented once, in hypercorn.

A new rule belongs here only if it makes fewer requests simple, or is certain for every client.
"""

from __future__ import annotations

import re

from spegel_consul.lean.dataclass import dataclass

_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/v2/[!-\"$->@-~]*)(?:\?([!-\"$-~]*))? HTTP/1\.1\r\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\Z")
_NOT_SIMPLE = frozenset(
    {
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_MAX_HEAD = 8192


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request without a body; ``path`` and ``query`` are undecoded, names of ``headers`` in lower case."""

    method: str
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]


def parse_simple(data: bytes) -> RequestHead | None:
    """Return the simple request of which ``data``, all received bytes, consists, or None if it is not one."""
    line = _REQUEST_LINE.match(data)
    if line is None or not data.endswith(b"\r\n\r\n") or len(data) > _MAX_HEAD:
        return None
    headers = parse_fields(data[line.end() : -4])
    if headers is None or not _NOT_SIMPLE.isdisjoint(headers):
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if b"host" not in headers:
        return None
    method, path, query = line.groups()
    return RequestHead(method.decode(), path, query or b"", headers)


def parse_fields(text: bytes) -> dict[bytes, bytes] | None:
    """Return header fields, separated by CRLF, by lower-case name; None if one is malformed or repeated."""
    headers: dict[bytes, bytes] = {}
    for line in text.split(b"\r\n"):
        field = _FIELD.match(line)
        if field is None:
            return None
        name = field[1].lower()
        # a repeated field may be a list or an attack, so the general parser decides
        if name in headers:
            return None
        headers[name] = field[2].rstrip(b" \t")
    return headers
