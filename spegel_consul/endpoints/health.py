"""``/livez`` and ``/readyz``: one line of text, or JSON if the client asks for it. A new health answer belongs here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question, plain

LIVE, ALIVE = "/livez", plain(200, "ok")
"""The path, and the answer in text by which preflight knows a sidecar."""

Problem = Callable[[], str | None]
Warnings = Callable[[Question], Sequence[str]]


def add_to(app: PlainApp, problem: Problem, warnings: Warnings) -> None:
    """Answer ``/livez`` with 200, and ``/readyz`` with 200 if ``problem()`` is None, else with 503 and the reason.

    ``warnings`` do not change the status; they depend on the request, because they may name other nodes.
    """

    async def alive(question: Question) -> Answer:
        return _json(200, {"alive": True}) if _wants_json(question) else ALIVE

    async def ready(question: Question) -> Answer:
        reason = problem()
        status = 200 if reason is None else 503
        if not _wants_json(question):
            return plain(status, reason or "ok")
        reasons = [] if reason is None else [reason]
        return _json(status, {"ready": reason is None, "reasons": reasons, "warnings": list(warnings(question))})

    app.add(LIVE, alive)
    app.add("/readyz", ready)


def _wants_json(question: Question) -> bool:
    """Whether the client names JSON; Consul's checks and curl do not."""
    if "format" in question.args:
        return question.args["format"] == "json"
    return "application/json" in question.headers.get("accept", "")


def _json(status: int, document: object) -> Answer:
    return Answer(status, f"{json.dumps(document)}\n".encode(), "application/json")
