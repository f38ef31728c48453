"""``/api/preheat``: have the cluster's runtimes pull an image; ``/api/preheat/own``: have this node's do.

Both are POST requests that are answered with lines of JSON (NDJSON) until all have ended. The first is for programs on
this machine, which the second accepts too, beside peers. A new route about preheats belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import structlog
import trio
from quart import Blueprint, Response, current_app, request

from spegel_consul.web import report_stream
from spegel_consul.web.access import preheat_access, request_origin
from spegel_consul.web.api import error
from spegel_consul.web.node_views import Node
from spegel_consul.web.preheat import preheat_targets
from spegel_consul.web.preheat.cluster_preheat import ClusterPreheat
from spegel_consul.web.preheat.own_preheat import LONGEST, NotMirrored, OwnPreheats
from spegel_consul.web.preheat.preheat_report import ClusterReport, OwnReport
from spegel_consul.web.queries.questions import BadQuestion, Busy, parse_image

log = structlog.get_logger(__name__)

_REFUSALS = {BadQuestion: 400, NotMirrored: 403, Busy: 429}
WITHIN = 600.0
"""Time limit of a preheat whose asker names none, in seconds."""


def blueprint(node: Node) -> Blueprint:
    """The routes below ``/api/preheat``."""
    preheat = Blueprint("preheat", __name__, url_prefix="/api/preheat")
    rules = node.preheat
    own = OwnPreheats(rules, node.store) if rules is not None else None

    @preheat.get("")
    async def only_by_post() -> Response:
        return error(405, "a preheat costs nodes disk and line: ask for it with POST")

    @preheat.post("")
    async def of_the_cluster() -> Response:
        if (refused := preheat_access.refusal_of_asker()) is not None:
            return error(403, refused)
        if own is None:
            return error(403, preheat_access.OFF)
        try:
            count, within = _count(request.args.get("nodes", "all")), _within()
            reference = parse_image(request.args.get("image", ""))
            own.check(reference)
        except tuple(_REFUSALS) as exc:
            return error(_REFUSALS[type(exc)], str(exc))
        targets = await preheat_targets.find(node, count)
        report = ClusterReport(str(reference), [(target.id, target.name) for target in targets])
        return _streamed(lambda: ClusterPreheat(node, own).run(reference, targets, within, report), report)

    @preheat.post("/own")
    async def of_this_node() -> Response:
        if rules is None or own is None:
            return error(403, preheat_access.OFF)
        try:
            within = _within()
            reference = parse_image(request.args.get("image", ""))
            # before the images of this node are told of, because the sender may be anybody
            if (refused := preheat_access.refusal(node, rules, str(reference))) is not None:
                return error(403, refused)
            own.check(reference)
        except tuple(_REFUSALS) as exc:
            return error(_REFUSALS[type(exc)], str(exc))
        log.info("preheat accepted", image=str(reference), sender=str(request_origin.client_address()))
        report = OwnReport()
        return _streamed(lambda: own.run(reference, within, report), report)

    return preheat


def _streamed(work: Callable[[], Awaitable[object]], report: report_stream.Report) -> Response:
    nursery: trio.Nursery = current_app.nursery  # type: ignore[attr-defined]
    lines = report_stream.follow(work, report, nursery)
    return Response(lines, content_type=report_stream.STREAM, headers={"cache-control": "no-store"})


def _count(text: str) -> int | None:
    """The number of nodes to ask; None for all. Raises BadQuestion."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
        raise BadQuestion("nodes must be a number greater than zero, or all")
    return int(text)


def _within() -> float:
    """The time limit in seconds. Raises BadQuestion."""
    try:
        within = float(request.args.get("within", f"{WITHIN}"))
    except ValueError:
        within = math.nan
    if not 0 < within <= LONGEST:
        raise BadQuestion(f"within must be a number of seconds, greater than zero and at most {LONGEST:g}")
    return within
