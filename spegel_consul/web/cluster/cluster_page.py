"""``/debug/web/cluster``: all nodes in one page, from the summaries that they give when somebody looks.

Rows are paged, with the nodes in trouble first, and can be searched, so a cluster of a thousand nodes makes the page no
longer than one of fifty. The page fetches itself less often than that of a node, because a new round of questions is
behind it. A new part of the page belongs here and in ``cluster.html``.
"""

from __future__ import annotations

from typing import Any

import trio
from quart import Blueprint, Response, request

from spegel_consul.web import drawing
from spegel_consul.web.cluster.cluster_facts import ClusterFacts, ImageRow, NodeRow
from spegel_consul.web.cluster.cluster_survey import ClusterSurvey
from spegel_consul.web.node_views import Node
from spegel_consul.web.pages import HEADERS, environment

PATH = "/debug/web/cluster"
MOST_ROWS = 50
MOST_IMAGES = 25
_NAMED = 3  # nodes of an image that are named


def blueprint(node: Node, survey: ClusterSurvey) -> Blueprint:
    """The route of the page."""
    pages = Blueprint("cluster", __name__)
    templates = environment()
    threads = trio.CapacityLimiter(1)

    @pages.get(PATH)
    async def index() -> Response:
        found = await survey.look()
        facts = view(found, request.args.get("find", "").strip()[:100], request.args.get("page", "1"))
        facts["node"] = node.name
        # in a thread, because the rows take tens of milliseconds, which would delay all transfers
        text = await trio.to_thread.run_sync(templates.get_template("cluster.html").render, facts, limiter=threads)
        return Response(text, content_type="text/html; charset=utf-8", headers=HEADERS)

    return pages


def view(facts: ClusterFacts, find: str, page: str) -> dict[str, Any]:
    """The variables of the template: one page of the nodes, and of the images those of the most nodes."""
    wanted = find.lower()
    nodes = [row for row in facts.by_trouble if _has(row, wanted)] if wanted else facts.by_trouble
    images = [image for image in facts.images if wanted in image.name.lower()]
    pages = max(1, -(-len(nodes) // MOST_ROWS))
    number = min(pages, max(1, int(page))) if page.isascii() and page.isdigit() and len(page) < 6 else 1
    return {
        "facts": facts,
        "find": find,
        "rows": nodes[(number - 1) * MOST_ROWS : number * MOST_ROWS],
        "nodes_found": len(nodes),
        "page": number,
        "pages": pages,
        "images": [_drawn(image, facts) for image in images[:MOST_IMAGES]],
        "images_found": len(images),
    }


def _has(row: NodeRow, text: str) -> bool:
    """Whether a text is in one of the things that people know of a node."""
    peer, summary = row.peer, row.summary
    known = [row.name, str(peer["id"]), str(peer["registry"]), str(peer["state"]), *row.alarms]
    if summary is not None:
        known += [summary.version, summary.zone, *(name for name, _ in summary.images)]
    return any(text in each.lower() for each in known)


def _drawn(image: ImageRow, facts: ClusterFacts) -> dict[str, Any]:
    width, path = drawing.spread(image.nodes, len(facts.rows))
    return {
        "name": image.name,
        "digests": image.digests,
        "count": len(image.nodes),
        "names": [facts.rows[number].name for number in image.nodes[: _NAMED + 1]],
        "width": width,
        "path": path,
    }
