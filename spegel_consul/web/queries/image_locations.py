"""Where else the images of this node are: asked of the ring, and remembered for a moment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from spegel_consul.web.node_views import Node
from spegel_consul.web.queries.questions import lookup

FRESH = 15.0
WITHIN = 0.4
MOST = 50
"""Images that are asked for at a time; a page with more of them answers for the first."""


class ImageLocations:
    """Names of the other nodes that have an image."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asking = trio.Lock()
        self._found: dict[str, tuple[float, list[str]]] = {}

    async def of(self, names: Sequence[str]) -> dict[str, list[str]]:
        """For each image that was asked for, the nodes that have it, sorted."""
        wanted = list(names[:MOST])
        async with self._asking:  # who comes meanwhile waits for the answers, rather than to ask again
            now = trio.current_time()
            stale = [name for name in wanted if self._found.get(name, (-math.inf, []))[0] <= now]
            async with trio.open_nursery() as nursery:
                for name in stale:
                    nursery.start_soon(self._ask, name)
            self._found = {name: found for name, found in self._found.items() if name in wanted}
            return {name: found for name, (_, found) in self._found.items()}

    async def _ask(self, name: str) -> None:
        document = await lookup(self._node, name, within=WITHIN)
        others = sorted(provider["node"] or provider["registry"] for provider in document["providers"])
        self._found[name] = (trio.current_time() + FRESH, others)
