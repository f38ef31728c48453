"""``/livez`` and ``/readyz``: one line of text, or JSON if the client asks for it. A new health answer belongs here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from quart import Response, request

Problem = Callable[[], str | None]
Warnings = Callable[[], Sequence[str]]


def alive() -> Response:
    """The answer of a process that runs."""
    if _wants_json():
        return _json(200, {"alive": True})
    return _plain(200, "ok")


def ready(problem: Problem, warnings: Warnings) -> Response:
    """200 if the node can serve its content, else 503 and the reason. Warnings do not change the status."""
    reason = problem()
    status = 200 if reason is None else 503
    if _wants_json():
        reasons = [] if reason is None else [reason]
        return _json(status, {"ready": reason is None, "reasons": reasons, "warnings": list(warnings())})
    return _plain(status, reason or "ok")


def _wants_json() -> bool:
    """Whether the client names JSON; Consul's checks and curl do not."""
    if request.args.get("format") is not None:
        return request.args["format"] == "json"
    return "application/json" in request.headers.get("accept", "")


def _json(status: int, document: object) -> Response:
    return Response(json.dumps(document) + "\n", status=status, content_type="application/json")


def _plain(status: int, text: str) -> Response:
    return Response(text + "\n", status=status, content_type="text/plain; charset=utf-8")
