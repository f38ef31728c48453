"""``/api/…``: the node's facts in JSON, for the command line and other programs.

Answers are JSON, errors are ``{"error": "one line"}``, and a new version only adds fields. Each client that reaches the
port may read everything. Only the log's level can be changed, by requests from this machine; preheats have routes of
their own (:mod:`spegel_consul.web.preheat`). A new route belongs here; its document
belongs to :mod:`spegel_consul.web.node_views`, :mod:`spegel_consul.web.queries` or :mod:`spegel_consul.web.cluster`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import trio
from quart import Blueprint, Response, current_app, request

from spegel_consul import log
from spegel_consul.web import report_stream
from spegel_consul.web.access import request_origin
from spegel_consul.web.cluster import node_summary
from spegel_consul.web.cluster.cluster_survey import ClusterSurvey
from spegel_consul.web.node_views import Node
from spegel_consul.web.queries.questions import BadQuestion, Busy, Measurement, Measurer, lookup, parse

LONGEST_WAIT = 60.0
MOST_LOOKUPS = 8
"""Limit of concurrent lookups, because each one may ask many members."""


def blueprint(node: Node, measurer: Measurer, survey: ClusterSurvey) -> Blueprint:
    """The routes below ``/api``."""
    api = Blueprint("api", __name__, url_prefix="/api")
    lookups = trio.CapacityLimiter(MOST_LOOKUPS)

    @api.get("/status")
    async def status() -> Response:
        return answer(node.status())

    @api.get("/peers")
    async def peers() -> Response:
        return answer(node.peers())

    @api.get("/images")
    async def images() -> Response:
        return answer(node.images())

    @api.get("/summary")
    async def summary() -> Response:
        return answer(node_summary.of(node))

    @api.get("/cluster")
    async def cluster() -> Response:
        """The summaries of all nodes, from the last round of questions to them."""
        return answer((await survey.look()).to_json())

    @api.get("/transfers")
    async def transfers() -> Response:
        return answer(node.transfers())

    @api.get("/requests")
    async def requests() -> Response:
        return answer(node.requests())

    @api.get("/lookup")
    async def look_up() -> Response:
        try:
            key, _ = parse(request.args.get("key", ""))
        except BadQuestion as exc:
            return error(400, str(exc))
        try:
            lookups.acquire_nowait()
        except trio.WouldBlock:
            return error(429, f"{MOST_LOOKUPS} lookups are going on; try again when one has ended")
        try:
            return answer(await lookup(node, key, node.cluster_members().names))
        finally:
            lookups.release()

    @api.get("/measure")
    async def only_by_post() -> Response:
        return error(405, "a measurement costs other nodes work: ask for it with POST")

    @api.post("/measure")
    async def measure() -> Response:
        if request_origin.from_another_site():
            return error(403, "a page of another site asked for this measurement")
        try:
            measurement = measurer.prepare(request.args.get("image", ""))
            if report_stream.STREAM not in request.headers.get("accept", ""):
                return answer((await measurer.run(measurement)).to_json())
        except BadQuestion as exc:
            return error(400, str(exc))
        except Busy as exc:
            return error(429, str(exc))
        nursery: trio.Nursery = current_app.nursery  # type: ignore[attr-defined]
        lines = _follow(measurer, measurement, nursery)
        return Response(lines, content_type=report_stream.STREAM, headers={"cache-control": "no-store"})

    @api.get("/events")
    async def events() -> Response:
        """Events after number ``since``; without one, wait for the first one up to ``wait`` seconds.

        ``life``: from an earlier answer; it identifies the process, because the numbers restart with it.
        """
        try:
            since = int(request.args.get("since", "0"))
            wait = min(LONGEST_WAIT, max(0.0, float(request.args.get("wait", "0"))))
        except ValueError:
            return error(400, "since and wait must be numbers")
        life = f"{node.started:.6f}"
        if request.args.get("life") not in (None, "", life):
            since = 0
        found = await log.events.wait(since, wait)
        return answer({"last": log.events.last, "life": life, "level": log.level.current, "events": found})

    @api.get("/log-level")
    async def log_level() -> Response:
        return answer({"level": log.level.current, "configured": log.level.configured})

    @api.put("/log-level")
    async def set_log_level() -> Response:
        if not request_origin.from_this_machine() or request_origin.from_another_site():
            return error(403, "the level can only be changed by requests from this machine")
        body = await request.get_data()
        try:
            log.level.set((body if isinstance(body, str) else body.decode("utf-8", "replace")).strip().lower()[:20])
        except ValueError as exc:
            return error(400, str(exc))
        return answer({"level": log.level.current, "configured": log.level.configured})

    return api


def _follow(measurer: Measurer, measurement: Measurement, nursery: trio.Nursery) -> AsyncIterator[bytes]:
    """One line for each change of the measurement, which is cancelled when the client leaves."""
    return report_stream.follow(lambda: measurer.run(measurement), measurement, nursery)


def answer(document: Any) -> Response:
    return Response(json.dumps(document) + "\n", content_type="application/json", headers={"cache-control": "no-store"})


def error(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}) + "\n", status=status, content_type="application/json")
