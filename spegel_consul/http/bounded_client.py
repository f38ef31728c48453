"""HTTP client for Consul, Nomad and bootstrap URLs, whose answers are limited in size and in time.

An answer is decoded only after it has been received within its limits. Bodies without encoding are requested, and an
encoded body is refused, because a few megabytes of gzip unpack to gigabytes. Text is always UTF-8, because a charset in
the answer may name a codec that unpacks as well, or takes quadratic time. JSON unpacks too: the three bytes of ``{},``
become 72 bytes of objects. So the structural characters of an answer are counted while it is received, and an answer
whose objects would take more than four times its limit is refused before it is decoded. Redirects are not followed, and
cookies are not kept. h11, below httpx, limits a head to 100 KiB.

A new rule belongs here if it protects from any server, whatever the server provides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import trio

from spegel_consul import __version__
from spegel_consul.disk.foreign_files import size

OBJECTS = {b"{": 110, b"[": 60, b",": 70, b":": 20}
"""Bytes of memory that are assumed for the object that follows each structural character of JSON.

A list of services of Consul takes four fifths of the sum, hostile JSON at most one and a half times as much.
"""
EXPANSION = 4
"""The estimated memory of a decoded answer, its text included, may be so many times the limit of the call."""
_LEAST_MEMORY = 4 << 20  # bytes; a limit of some KiB needs no second one


class AnswerRefused(Exception):
    """The answer is too long, too dense or encoded; the message is one line."""


@dataclass(frozen=True, slots=True)
class Received:
    """An answer that was received completely."""

    status: int
    headers: httpx.Headers
    body: bytes
    certificate: Mapping[str, Any] | None = None
    """The server's certificate, which the client's context has verified."""

    @property
    def text(self) -> str:
        """The body as UTF-8, with replacement characters for invalid bytes."""
        return self.body.decode("utf-8", "replace")


def client(**settings: Any) -> httpx.AsyncClient:
    """Return a client for :func:`receive`; ``settings`` are those of httpx.AsyncClient."""
    headers = {"User-Agent": f"spegel-consul/{__version__}", "Accept-Encoding": "identity"}
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        headers={**headers, **settings.pop("headers", {})},
        **settings,
    )


async def receive(
    asker: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    limit: int,
    within: float,
    connect: float,
    params: Mapping[str, str] | None = None,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> Received:
    """Send a request and return the answer, which may have ``limit`` bytes and EXPANSION times as many when decoded.

    The connection may take ``connect`` seconds, and the answer ``within`` seconds more. Raises AnswerRefused,
    trio.TooSlowError, and httpx's exceptions.
    """
    body = bytearray()
    memory, most = 0, max(_LEAST_MEMORY, EXPANSION * limit)
    # a deadline for the whole answer, because httpx's timeouts start anew with each piece
    with trio.fail_after(within + connect):
        async with asker.stream(
            method,
            url,
            params=params,
            content=content,
            headers=headers,
            timeout=httpx.Timeout(within, connect=connect),
            extensions=dict(extensions or {}),
        ) as answer:
            connection = answer.extensions.get("network_stream")
            secure = connection.get_extra_info("ssl_object") if connection is not None else None
            certificate = secure.getpeercert() if secure is not None else None
            encoding = answer.headers.get("Content-Encoding", "").strip()
            if encoding.lower() not in ("", "identity"):
                raise AnswerRefused(f"the answer has an encoding ({encoding[:40]!r}) that was not requested")
            length = answer.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit() and int(length[:20]) > limit:
                raise AnswerRefused(f"the answer has more than {size(limit)}")
            # a cancellation, because an exception would leave httpx's generators open
            with trio.CancelScope() as too_long:
                async for piece in answer.aiter_bytes():
                    memory += len(piece) + sum(each * piece.count(mark) for mark, each in OBJECTS.items())
                    if len(body) + len(piece) > limit or memory > most:
                        too_long.cancel()
                    if not too_long.cancel_called:
                        body += piece
                    # a checkpoint for other tasks, because many pieces of one byte may be ready at once
                    await trio.lowlevel.cancel_shielded_checkpoint()
            if too_long.cancel_called and memory > most:
                raise AnswerRefused(f"the answer would take more than {size(most)} of memory")
            if too_long.cancel_called:
                raise AnswerRefused(f"the answer has more than {size(limit)}")
    return Received(answer.status_code, answer.headers, bytes(body), certificate)
