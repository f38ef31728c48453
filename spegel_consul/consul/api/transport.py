# The client library, made to run on Trio and kept behind a fence.
#
# python-consul2's endpoint classes only build paths, parameters and a callback, and return whatever the HTTP
# client under them returns.  So an HTTP client with `async` methods makes the whole API awaitable: no threads,
# and a cancelled call closes its socket.  What the library gets wrong is fenced here:
#
#   * its constructor lets the environment beat its arguments and understands neither unix sockets nor IPv6
#     nor a path prefix, and it warns about an endpoint that we never call: TrioConsul builds the endpoints itself
#   * a 404 becomes `(None, None)`, which is true, or False: a 404 raises here, unless it is the regular answer
#     of a missing key, which carries an index
#   * statuses are told apart only roughly, HTML makes a JSONDecodeError, a missing header a KeyError: sorted
#     by errors.error_for() before, and caught behind, the library's callback
#   * some endpoints forget the token: it is added to every request here
#   * there is no limit: each call has one in time - a blocking query its wait plus what Consul adds to it - and one
#     in bytes by its kind, see bounded.py

"""The Trio transport under python-consul2."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import httpx
import trio
from consul.base import CB, Consul, HTTPClient, Response

from spegel_consul.consul.api.client_tls import FollowedContext
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    ConsulError,
    ConsulTimeout,
    ConsulUnavailable,
    NotFound,
    UnexpectedAnswer,
    error_for,
)
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.duration import parse_duration
from spegel_consul.consul.api.token import TokenSource
from spegel_consul.disk.threads import in_thread
from spegel_consul.http import bounded_client

CONNECT_TIMEOUT = 3.0
CALL_TIMEOUT = 10.0
_SLACK = 2.0
ANSWER_SIZE = 1 << 20
"""Longest answer that is taken, in bytes: a value of 512 KiB, which is Consul's limit, has 700 kB in base64."""
LIST_SIZE = 32 << 20
"""The same for lists of services: an instance takes 1 to 3 kB, so these are more than ten thousand."""
_LISTS = ("/v1/health/", "/v1/agent/services")
_LARGE = 1 << 18
"""Bytes of an answer above which it is decoded in a thread: the catalog of a thousand nodes takes 30 ms and more."""
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""A long poll whose other end is gone ends after 25 s; without this it would end only with its time limit."""


class TrioHTTPClient(HTTPClient):  # type: ignore[misc]  # the library has no types
    """The library's HTTP client interface on httpx. Its methods are coroutine functions."""

    def __init__(self, settings: ConsulSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(settings.host, settings.port, settings.scheme, settings.verify)
        self.base_uri = settings.base_url
        self.tokens = TokenSource(settings.token, settings.token_file)
        self.answered_at: float | None = None
        """When Consul last did what was asked (Trio clock)."""
        self._scope = [
            (name, value) for name, value in (("ns", settings.namespace), ("partition", settings.partition)) if value
        ]
        self._trusted = settings.trusted
        self._extensions = {"sni_hostname": settings.tls_server_name} if settings.tls_server_name else {}
        self._tls = FollowedContext(settings) if settings.scheme == "https" else None
        # The pool is far larger than the number of long polls, so that a renewal never queues behind one.
        self._client = bounded_client.client(
            transport=transport
            or httpx.AsyncHTTPTransport(
                verify=self._tls.context if self._tls else False,
                uds=settings.uds,
                trust_env=False,
                limits=httpx.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=30.0),
                socket_options=None if settings.uds else _KEEPALIVE,
            ),
            auth=settings.basic_auth,
        )

    async def request(
        self,
        method: str,
        callback: Callable[[Any], Any],
        path: str,
        params: Iterable[tuple[str, Any]] | None = None,
        data: str | bytes = b"",
        within: float | None = None,
    ) -> Any:
        """One request; what ``callback``, a pure function, makes of the answer. Raises ConsulError.

        ``within`` (seconds) is for the answer, after a connection that has at most 3 s; None means 10 s, or
        for a blocking query its wait and what the server may add.
        """
        query = [*(params or ()), *self._scope]
        budget = within or _budget(dict(query))
        token = await self.tokens.current()
        if self._tls is not None:
            await self._tls.look(trio.current_time())
        try:
            answer = await bounded_client.receive(
                self._client,
                method,
                self.uri(path, query),
                limit=LIST_SIZE if path.startswith(_LISTS) else ANSWER_SIZE,
                within=budget,
                connect=CONNECT_TIMEOUT,
                content=data.encode() if isinstance(data, str) else data,
                headers={"X-Consul-Token": token} if token else {},
                extensions=self._extensions,
            )
        except (httpx.TimeoutException, trio.TooSlowError) as why:
            raise ConsulTimeout(f"{method} {path}: no answer within {budget:g} s") from why
        except bounded_client.AnswerRefused as why:
            raise UnexpectedAnswer(f"{method} {path}: {why}: not an answer of Consul's") from None
        except httpx.LocalProtocolError as why:
            raise ConsulUnavailable(f"{self.base_uri}: {root_cause(why)}") from None  # not even in a traceback
        except (httpx.HTTPError, httpx.InvalidURL) as why:
            raise ConsulUnavailable(f"{self.base_uri}: {root_cause(why)}{self._hint(why)}") from why
        except Exception as why:  # the client is closed, or a fault of a library: never the end of a task
            raise ConsulUnavailable(f"{self.base_uri}: {type(why).__name__}: {root_cause(why)}") from why
        missing_key = answer.status == 404 and "X-Consul-Index" in answer.headers
        if not missing_key and (error := error_for(answer.status, answer.text)) is not None:
            if isinstance(error, AccessDenied) and self.tokens.problem is not None:
                raise AccessDenied(f"{error} ({self.tokens.problem})") from None
            raise error
        self.answered_at = trio.current_time()
        response = Response(answer.status, answer.headers, answer.text, answer.body)
        try:
            if len(answer.body) <= _LARGE:
                return callback(response)
            return await in_thread(partial(callback, response))
        except ConsulError:
            raise
        except Exception as why:  # whatever a decoder makes of bytes that others chose; MemoryError is one
            reason = " ".join(str(why).split())[:100]
            raise UnexpectedAnswer(
                f"{method} {path}: not an answer of Consul's ({type(why).__name__}: {reason})"
            ) from why

    def _hint(self, error: BaseException) -> str:
        """Which settings a failed verification has to do with."""
        text = root_cause(error)
        if "CERTIFICATE_VERIFY_FAILED" not in text and "certificate verify failed" not in text:
            return ""
        if "ostname mismatch" in text or "not valid for" in text:
            return " (CONSUL_TLS_SERVER_NAME is the name that its certificate must have)"
        return f" (its certificate is not signed by {self._trusted})"

    # The library's interface. It passes headers only for the token, which request() adds.
    async def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        return await self.request("GET", callback, path, params)

    async def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self.request("PUT", callback, path, params, data)

    async def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self.request("DELETE", callback, path, params, data)

    async def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self.request("POST", callback, path, params, data)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class TrioConsul(Consul):  # type: ignore[misc]  # the library has no types
    """The library's client with awaitable endpoints, made from our settings alone."""

    def __init__(self, http: TrioHTTPClient) -> None:
        self.http = http
        self.token = None  # added below, to every request
        self.dc = None
        self.consistency = "default"
        self.agent = Consul.Agent(self)
        self.health = Consul.Health(self)
        self.kv = Consul.KV(self)
        self.session = Consul.Session(self)
        self.status = Consul.Status(self)


def answered_json(response: Any) -> Any:
    """A callback for our own requests: the decoded body; NotFound for a 404, whatever its headers."""
    if response.code == 404:
        raise NotFound(response.body)
    return CB.json()(response)


def answered_ok(response: Any) -> None:
    """A callback for requests whose answer has no content worth reading, unless it is a page of somebody else's."""
    if response.code == 404:
        raise NotFound(response.body)
    if response.body.lstrip().startswith("<"):
        raise UnexpectedAnswer(f"not an answer of Consul's: {' '.join(response.body.split())[:80]}")


def _budget(query: dict[str, Any]) -> float:
    if not query.get("index"):
        return CALL_TIMEOUT
    wait = parse_duration(query["wait"]) if query.get("wait") else 300.0
    return wait + wait / 16 + _SLACK  # the server adds up to a sixteenth, to spread its clients


def root_cause(error: BaseException) -> str:
    """httpx often has an empty text; the reason (refused, certificate) is further down."""
    if isinstance(error, httpx.LocalProtocolError):
        return "the request has a header that HTTP does not allow"  # its own text shows the header, so the token
    best, seen, at = str(error), set(), error
    while id(at) not in seen:
        seen.add(id(at))
        below = at.exceptions[0] if isinstance(at, BaseExceptionGroup) else at.__cause__ or at.__context__
        if below is None:
            break
        at = below
        best = str(at) if str(at) and not isinstance(at, BaseExceptionGroup) else best
    return best or type(error).__name__
