"""``/api/copies``: the images that too few nodes have, of this node or of all nodes.

The count of all nodes asks each of them, so it is made by POST, and one at a time. A new route about copies belongs
here.
"""

from __future__ import annotations

import trio
from quart import Blueprint, Response, request

from spegel_consul.web.access import request_origin
from spegel_consul.web.api import answer, error
from spegel_consul.web.copies import cluster_copies
from spegel_consul.web.copies.own_copies import MOST_COPIES, OwnCopies
from spegel_consul.web.node_views import Node


def blueprint(node: Node, own: OwnCopies) -> Blueprint:
    """The routes at ``/api/copies``."""
    copies = Blueprint("copies", __name__, url_prefix=cluster_copies.PATH)
    places = trio.CapacityLimiter(1)

    @copies.get("")
    async def of_this_node() -> Response:
        wanted = _wanted()
        return _no_number() if wanted is None else answer(await own.fewer_than(wanted, last="last" in request.args))

    @copies.post("")
    async def of_the_cluster() -> Response:
        if request_origin.from_another_site():
            return error(403, "a page of another site asked for this count")
        if (wanted := _wanted()) is None:
            return _no_number()
        try:
            places.acquire_nowait()
        except trio.WouldBlock:
            return error(429, "another count of all nodes is going on; try again when it has ended")
        try:
            return answer(await cluster_copies.fewer_than(node, own, wanted))
        finally:
            places.release()

    return copies


def _wanted() -> int | None:
    text = request.args.get("fewer", "2")
    is_number = len(text) <= 3 and text.isascii() and text.isdigit()
    return int(text) if is_number and 2 <= int(text) <= MOST_COPIES else None


def _no_number() -> Response:
    return error(400, f"fewer must be a number of nodes from 2 to {MOST_COPIES}")
