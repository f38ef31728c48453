"""HTTP client for Consul, Nomad and bootstrap URLs, whose answers are limited in size and in time.

The bounds of the body are those of :mod:`spegel_consul.http.answer_bounds`. Text is always UTF-8, because a charset in
the answer may name a codec that unpacks as well, or takes quadratic time. Redirects are not followed, and cookies are
not kept. h11, below httpx, limits a head to 100 KiB.

A new rule belongs here if it protects from any server, whatever the server provides.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import trio

from spegel_consul import __version__
from spegel_consul.http.answer_bounds import BoundedBody
from spegel_consul.lean.dataclass import dataclass


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
            body = BoundedBody(
                limit, answer.headers.get("Content-Encoding", ""), answer.headers.get("Content-Length", "")
            )
            # a cancellation, because an exception would leave httpx's generators open
            with trio.CancelScope() as too_long:
                async for piece in answer.aiter_bytes():
                    if not body.add(piece):
                        too_long.cancel()
                    # a checkpoint for other tasks, because many pieces of one byte may be ready at once
                    await trio.lowlevel.cancel_shielded_checkpoint()
            received = body.whole()
    return Received(answer.status_code, answer.headers, received, certificate)
