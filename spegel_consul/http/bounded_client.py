"""Questions over HTTP whose answers are limited in size and in time.

An answer is decoded only after it has been received within limits: servers are asked for bodies without encoding, and
an encoded body is refused, because a few megabytes of gzip unpack to gigabytes.  Text is always UTF-8, because a
charset in the answer may name a codec that unpacks as well, or takes quadratic time.  Redirects are not followed and
cookies are not kept.  h11, below httpx, ends a head after 100 KiB.

Used for Consul, Nomad and bootstrap URLs.  A new rule belongs here if it protects from any server, whatever it serves.
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


class AnswerRefused(Exception):
    """The answer is too long or encoded; one line that says so."""


@dataclass(frozen=True, slots=True)
class Received:
    """An answer that was received whole."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8, with replacement characters for what is none."""
        return self.body.decode("utf-8", "replace")


def client(**settings: Any) -> httpx.AsyncClient:
    """A client for :func:`receive`; ``settings`` are those of httpx.AsyncClient."""
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
    """One answer of ``limit`` bytes at most, ``within`` seconds after a connection that takes ``connect`` at most.

    Raises AnswerRefused, trio.TooSlowError, and what httpx raises.
    """
    body = bytearray()
    # httpx's own limits are not enough, because they start anew with each piece
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
            encoding = answer.headers.get("Content-Encoding", "").strip()
            if encoding.lower() not in ("", "identity"):
                raise AnswerRefused(f"the answer is encoded ({encoding[:40]!r}), which was not asked for")
            length = answer.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit() and int(length[:20]) > limit:
                raise AnswerRefused(f"the answer has more than {size(limit)}")
            # cancelled, not left by an exception, which would leave httpx's generators open
            with trio.CancelScope() as too_long:
                async for piece in answer.aiter_bytes():
                    if len(body) + len(piece) > limit:
                        too_long.cancel()
                    if not too_long.cancel_called:
                        body += piece
                    # pieces of one byte each are there all at once, and others want to run in between
                    await trio.lowlevel.cancel_shielded_checkpoint()
            if too_long.cancel_called:
                raise AnswerRefused(f"the answer has more than {size(limit)}")
    return Received(answer.status_code, answer.headers, bytes(body))
