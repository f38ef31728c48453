# Any node's metrics port serves /id, and its registry's port too, with TLS if that has it.  Spegel's nodes do, and so
# can a file behind a web server or a load balancer that picks one of the nodes.  Half of what such URLs answer in
# practice is something else - an error page, a login form, a redirect - so the answer is bounded in size and time
# before anybody looks at it.

"""``HttpSource``: peers from a URL."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio

from spegel_consul import __version__
from spegel_consul.bootstrap.polled import SourceError
from spegel_consul.bootstrap.reading import MAX_BYTES, one_line, parse_document
from spegel_consul.consul.transport import root_cause
from spegel_consul.ring import PeerInfo


class HttpSource:
    """Asks ``url`` for a document as ``reading.parse_document`` takes it.

    ``cert_dir`` has ``ca.crt`` and, for mutual TLS, ``tls.crt`` and ``tls.key``, which are read anew for every
    question. Without it ``trust`` makes the contexts for https, and without that the system's authorities count.
    Raises ValueError for a URL or a directory that can't be used.
    """

    def __init__(
        self, url: str, cert_dir: Path | None = None, trust: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL: expected something like http://10.0.0.7:9090/id")
        if cert_dir is not None and parts.scheme != "https":
            raise ValueError(f"{url!r} is not https, so the certificates in {cert_dir} would not be used")
        self._url = url
        self._name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
        self._context: Callable[[], ssl.SSLContext | bool] = trust or (lambda: True)
        if cert_dir is not None:
            self._context = partial(_tls, cert_dir)
            self._context()
        elif parts.scheme == "http":
            self._context = lambda: False

    @property
    def name(self) -> str:
        return self._name

    async def ask(self) -> Sequence[PeerInfo]:
        """The first three peers that it names. Raises SourceError."""
        try:
            async with (
                httpx.AsyncClient(
                    verify=self._context(),
                    trust_env=False,
                    timeout=httpx.Timeout(5.0, connect=3.0),
                    headers={"User-Agent": f"spegel-consul/{__version__}", "Accept": "application/json, text/plain"},
                ) as client,
                client.stream("GET", self._url) as answer,
            ):
                if answer.status_code != 200:
                    raise SourceError(f"answers {answer.status_code}")
                body = bytearray()
                # cancelled, not left by a break, which would leave httpx's generators open
                with trio.CancelScope() as too_long:
                    async for piece in answer.aiter_raw():
                        body += piece
                        if len(body) > MAX_BYTES:
                            too_long.cancel()
            return parse_document(bytes(body))
        except httpx.TimeoutException:
            raise SourceError("no answer in time") from None
        except httpx.HTTPError as why:
            raise SourceError(one_line(root_cause(why), 200)) from None
        except ValueError as why:
            raise SourceError(one_line(str(why), 200)) from None


def _tls(cert_dir: Path) -> ssl.SSLContext:
    """Raises ValueError."""
    ca, cert, key = (cert_dir / name for name in ("ca.crt", "tls.crt", "tls.key"))
    if not (ca.exists() or cert.exists()):
        raise ValueError(f"{cert_dir} has neither ca.crt nor tls.crt")
    if cert.exists() != key.exists():
        raise ValueError(f"{cert_dir}: tls.crt and tls.key belong together, one is missing")
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
        if cert.exists():
            context.load_cert_chain(cert, key)
    except OSError as why:
        raise ValueError(f"{cert_dir}: {why}") from None
    return context
