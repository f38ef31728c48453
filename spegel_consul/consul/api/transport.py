"""The Trio transport under python-consul2.

The endpoint classes of the library only build paths, parameters and a callback, and return the result of the HTTP
client under them.  So an HTTP client with coroutine methods makes the whole API awaitable: it needs no threads, and a
cancelled call closes its socket.  Faults of the library end here:

* Its constructor prefers the environment to its arguments, understands neither unix sockets nor IPv6 nor a path
  prefix, and warns about an endpoint that is never called.  So ``TrioConsul`` builds the endpoints itself.
* It turns a 404 into ``(None, None)``, which is true, or into False.  So a 404 is an exception here, unless it is the
  regular answer for a missing key, which carries an index.
* It classifies statuses only roughly; HTML raises JSONDecodeError, and a missing header KeyError.  So statuses are
  classified by ``error_for`` before its callback, and exceptions of the callback are converted.
* Some of its endpoints forget the token.  So the token is added to each request here.
* It has no limits.  Here each call has a limit of time (a blocking query its wait, plus the time that Consul may add)
  and a limit of bytes.

A rule that holds for every request to Consul belongs here; a new request belongs to ``client``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import trio
from consul.base import CB, Consul, HTTPClient, Response

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
from spegel_consul.error_words import in_words
from spegel_consul.http import bounded_client
from spegel_consul.http.answer_bounds import AnswerRefused

if TYPE_CHECKING:
    from spegel_consul.http.followed_context import FollowedContext

CONNECT_TIMEOUT = 3.0
CALL_TIMEOUT = 10.0
_SLACK = 2.0
ANSWER_SIZE = 1 << 20
"""Longest answer in bytes: a value of 512 KiB, which is Consul's limit, has 700 kB in base64."""
LIST_SIZE = 32 << 20
"""Longest list in bytes: an instance of a service takes 1 to 3 kB, so more than ten thousand fit."""
_LISTS = ("/v1/health/", "/v1/agent/services", "/v1/coordinate/nodes")
_LARGE = 1 << 18
"""Bytes of an answer above which it is decoded in a thread; the catalog of a thousand nodes takes at least 30 ms."""
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""With these a long poll ends 25 s after its other end is gone; without them it ends with its time limit."""


class TrioHTTPClient(HTTPClient):  # type: ignore[misc]  # the library has no types
    """The library's HTTP client interface on httpx. Its methods are coroutine functions."""

    def __init__(self, settings: ConsulSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(settings.host, settings.port, settings.scheme, settings.verify)
        self.base_uri = settings.base_url
        self.tokens = TokenSource(settings.token, settings.token_file)
        self.answered_at: float | None = None
        """Trio time of the last request that succeeded; None before the first one."""
        self._scope = [
            (name, value) for name, value in (("ns", settings.namespace), ("partition", settings.partition)) if value
        ]
        self._trusted = settings.tls.trusted
        self._extensions = {"sni_hostname": settings.tls_server_name} if settings.tls_server_name else {}
        self._tls: FollowedContext | None = None
        if settings.scheme == "https":
            # imported here, because it logs, and most commands and nodes speak plain HTTP to their own agent
            from spegel_consul.http.followed_context import FollowedContext

            self._tls = FollowedContext(settings.tls)
        # the pool is far larger than the number of long polls, so that a renewal never queues behind one
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
        """The result of ``callback``, a pure function, for the answer to one request. Raises ConsulError.

        ``within`` is the limit for the answer in seconds, after at most 3 s for the connection. None means 10 s, or for
        a blocking query its wait and the time that the server may add.
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
        except AnswerRefused as why:
            raise UnexpectedAnswer(f"{method} {path}: {why}: not an answer of Consul's") from None
        except httpx.LocalProtocolError as why:
            raise ConsulUnavailable(f"{self.base_uri}: {root_cause(why)}") from None  # its text has the token
        except (httpx.HTTPError, httpx.InvalidURL) as why:
            raise ConsulUnavailable(f"{self.base_uri}: {root_cause(why)}{self._hint(why)}") from why
        except Exception as why:  # because a closed client, or a fault of a library, must not end a task
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
        except Exception as why:  # because a decoder of untrusted bytes may raise anything, even MemoryError
            reason = " ".join(str(why).split())[:100]
            raise UnexpectedAnswer(
                f"{method} {path}: not an answer of Consul's ({type(why).__name__}: {reason})"
            ) from why

    def _hint(self, error: BaseException) -> str:
        """The setting to change after a failed verification, for people."""
        text = root_cause(error)
        if "CERTIFICATE_VERIFY_FAILED" not in text and "certificate verify failed" not in text:
            return ""
        if "ostname mismatch" in text or "not valid for" in text:
            return " (CONSUL_TLS_SERVER_NAME is the name that its certificate must have)"
        return f" (its certificate is not signed by {self._trusted})"

    # The interface of the library, which passes headers only for the token; request() adds that.
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
        self.token = None  # because TrioHTTPClient.request adds it to every request
        self.dc = None
        self.consistency = "default"
        self.agent = Consul.Agent(self)
        self.health = Consul.Health(self)
        self.kv = Consul.KV(self)
        self.session = Consul.Session(self)
        self.status = Consul.Status(self)


def answered_json(response: Any) -> Any:
    """A callback for requests that do not use the library: the decoded body. Raises NotFound for each 404."""
    if response.code == 404:
        raise NotFound(response.body)
    return CB.json()(response)


def answered_ok(response: Any) -> None:
    """A callback for requests whose answer has no content. Raises UnexpectedAnswer for HTML, which a proxy sent."""
    if response.code == 404:
        raise NotFound(response.body)
    if response.body.lstrip().startswith("<"):
        raise UnexpectedAnswer(f"not an answer of Consul's: {' '.join(response.body.split())[:80]}")


def _budget(query: dict[str, Any]) -> float:
    if not query.get("index"):
        return CALL_TIMEOUT
    wait = parse_duration(query["wait"]) if query.get("wait") else 300.0
    return wait + wait / 16 + _SLACK  # because the server adds up to a sixteenth, to spread its clients


def root_cause(error: BaseException) -> str:
    """The reason (refused, certificate) in a chain of exceptions; the first one of httpx often has an empty text."""
    if isinstance(error, httpx.LocalProtocolError):
        return "the request has a header that HTTP does not allow"  # its own text shows the token
    best, seen, at = in_words(error), set(), error
    while id(at) not in seen:
        seen.add(id(at))
        below = at.exceptions[0] if isinstance(at, BaseExceptionGroup) else at.__cause__ or at.__context__
        if below is None:
            break
        at = below
        best = in_words(at) if str(at) and not isinstance(at, BaseExceptionGroup) else best
    return best
