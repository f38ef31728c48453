"""``HttpSource``: peers from a URL.

The metrics port of each node serves /id, and so does the port of its registry, with TLS if the registry has it.  A node
of Spegel serves it too, and so can a file behind a web server, or a load balancer in front of the nodes.  In practice
such URLs often answer something else: an error page, a login form, a redirect.  So the answer is limited in size and
time before it is parsed.

A new rule about the request belongs here.  The forms of a document belong to ``peer_formats``.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import trio

from spegel_consul.consul.api.transport import root_cause
from spegel_consul.disk import foreign_files, pem
from spegel_consul.error_words import in_words
from spegel_consul.http import bounded_client
from spegel_consul.http.answer_bounds import AnswerRefused
from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.join.peer_formats import MAX_BYTES, one_line, parse_document
from spegel_consul.join.polled import SourceError
from spegel_consul.peers import PeerInfo

ANSWER_WITHIN, CONNECT_WITHIN = 5.0, 3.0
"""Limits in seconds for an answer and for a connection."""


class HttpSource:
    """Asks ``url`` for a document in a form of ``peer_formats.parse_document``.

    ``cert_dir`` has ``ca.crt`` and, for mutual TLS, ``tls.crt`` and ``tls.key``, which are read again for each
    question. Without ``cert_dir``, ``tls`` has the certificates for https; without ``tls``, the system's authorities
    are trusted. Raises ValueError for a URL or a directory that can't be used.
    """

    def __init__(self, url: str, cert_dir: Path | None = None, tls: PeerTls | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL: expected something like http://10.0.0.7:9090/id")
        if cert_dir is not None and parts.scheme != "https":
            raise ValueError(f"{url!r} is not https, so the certificates in {cert_dir} would not be used")
        self._url = url
        self._name = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # no password: it is logged
        self._cert_dir = cert_dir
        self._files = foreign_files.FileCalls()
        self._tls = tls if cert_dir is None and parts.scheme == "https" else None
        self._read: Callable[[], ssl.SSLContext] | None = None  # the context, if it is made of files
        if cert_dir is not None:
            self._read = partial(_tls, cert_dir)
            self._read()
        elif parts.scheme == "https" and tls is None:
            self._read = partial(pem.client_context, None)

    @property
    def name(self) -> str:
        return self._name

    async def _context(self) -> ssl.SSLContext | Literal[False] | None:
        """The client side of TLS; False for plain HTTP, None without a certificate."""
        if self._read is not None:
            return await self._files.run(self._read)
        return self._tls.client() if self._tls is not None else False

    async def ask(self) -> Sequence[PeerInfo]:
        """The first three peers of the document. Raises SourceError."""
        try:
            context = await self._context()
            if context is None:
                raise SourceError("this node has no certificate")
            headers = {"Accept": "application/json, text/plain"}
            async with bounded_client.client(verify=context, headers=headers) as client:
                answer = await bounded_client.receive(
                    client, "GET", self._url, limit=MAX_BYTES, within=ANSWER_WITHIN, connect=CONNECT_WITHIN
                )
            if self._tls is not None and not self._tls.accepts(answer.certificate):
                raise SourceError("has the certificate of another service")
            if answer.status != 200:
                hint = ": it may serve other machines over TLS only, at https" if answer.status == 403 else ""
                raise SourceError(f"answers {answer.status}{hint}")
            return parse_document(answer.body)
        except (httpx.TimeoutException, trio.TooSlowError):
            raise SourceError("no answer in time") from None
        except AnswerRefused as why:
            raise SourceError(f"{why}: not a list of peers") from None
        except httpx.HTTPError as why:
            raise SourceError(one_line(root_cause(why), 200)) from None
        except OSError as why:
            raise SourceError(f"{self._cert_dir or 'the authorities of this system'}: {in_words(why)}") from None
        except ValueError as why:
            raise SourceError(one_line(str(why), 200)) from None


def _tls(cert_dir: Path) -> ssl.SSLContext:
    """The TLS context with the files of ``cert_dir``. Raises ValueError."""
    ca, cert, key = (cert_dir / name for name in ("ca.crt", "tls.crt", "tls.key"))
    if not (foreign_files.may_exist(ca) or foreign_files.may_exist(cert)):
        raise ValueError(f"{cert_dir} has neither ca.crt nor tls.crt")
    if foreign_files.may_exist(cert) != foreign_files.may_exist(key):
        raise ValueError(f"{cert_dir}: tls.crt and tls.key belong together, one is missing")
    try:
        context = pem.client_context(ca if foreign_files.may_exist(ca) else None)
        if foreign_files.may_exist(cert):
            pem.load_pair(context, cert, key)
    except (OSError, ValueError) as why:
        raise ValueError(f"{cert_dir}: {in_words(why)}") from None
    return context
