"""A plain ASGI application for the fixed paths that machines ask: health, metrics, the router's id, dial-back.

Probes and scrapes are all that most nodes are ever asked besides content, and the framework of the pages costs 10 MiB.
So these paths are answered here, on both ports, and every other request is passed on. Only GET and HEAD are answered.

A rule about all of these answers belongs here; each answer belongs to its own module.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

from spegel_consul.lean.dataclass import dataclass

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A request without its body. Names of ``headers`` are in lower case; of repeated names, the first value counts.

    ``client`` is the address of the client, empty if it did not connect over IP.
    """

    method: str
    path: str
    args: Mapping[str, str]
    headers: Mapping[str, str]
    client: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; ``headers`` besides the content's type and length."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Question], Awaitable[Answer]]


def plain(status: int, text: str) -> Answer:
    """An answer of one line of text."""
    return Answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


async def not_allowed(question: Question) -> Answer:
    """The answer to a method other than GET and HEAD."""
    answer = plain(405, f"{question.method} is not supported")
    return replace(answer, headers=((b"allow", b"GET, HEAD"),))


class PlainApp:
    """Answers GET and HEAD of the paths of :meth:`add`, and their other methods with ``refuse``.

    ``others`` answers all other paths, and gets the lifespan events.
    """

    def __init__(self, others: ASGIFramework, refuse: Handler = not_allowed) -> None:
        self._handlers: dict[str, Handler] = {}
        self._others, self._refuse = others, refuse

    def add(self, path: str, handler: Handler) -> None:
        """Answer GET and HEAD of ``path`` with ``handler``."""
        self._handlers[path] = handler

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI 3 entry point."""
        if scope["type"] != "http" or (handler := self._handlers.get(scope["path"])) is None:
            await self._others(scope, receive, send)
        else:
            await answering(handler if scope["method"] in ("GET", "HEAD") else self._refuse)(scope, receive, send)


def answering(handler: Handler) -> ASGIFramework:
    """An ASGI application that answers every HTTP request with ``handler``; a failure of it is logged, with 500."""

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        assert scope["type"] == "http"
        question = _question(scope)
        try:
            answer = await handler(question)
        except Exception:  # a defect in one answer must not end the connection without one
            log.exception("request failed", path=question.path)
            answer = plain(500, "internal error; the node's log has the details")
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        body = answer.body if question.method != "HEAD" else b""
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return app


def _question(scope: HTTPScope) -> Question:
    args = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    client = scope.get("client")
    return Question(
        scope["method"],
        scope["path"],
        dict(reversed(args)),
        dict(reversed(fields)),
        client[0] if client is not None else "",
    )


async def live(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """The lifespan of an application that has nothing to start, until its shutdown."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
