"""The other nodes that have this node's images: looked up in the ring and cached for a moment.

The status page asks for the same images every two seconds. So an answer is reused until it expires, and concurrent
requests share one lookup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import trio

from spegel_consul.web.node_views import Node
from spegel_consul.web.queries.questions import lookup

FRESH = 15.0
"""Seconds for which an answer is reused."""
WITHIN = 0.4
"""Longest lookup of one image, in seconds."""
MOST = 50
"""Images that are looked up for one page; the rest of a longer list has no answer."""


class ImageLocations:
    """Names of the other nodes that have an image."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asking = trio.Lock()
        self._found: dict[str, tuple[float, list[str]]] = {}

    async def of(self, images: Sequence[str], nodes: Mapping[str, str]) -> dict[str, list[str]]:
        """The other nodes that have each image, sorted; ``nodes``: their names by peer id, as far as known."""
        wanted = list(images[:MOST])
        async with self._asking:  # a concurrent request waits for these answers instead of asking again
            now = trio.current_time()
            stale = [name for name in wanted if self._found.get(name, (-math.inf, []))[0] <= now]
            async with trio.open_nursery() as nursery:
                for name in stale:
                    nursery.start_soon(self._ask, name, nodes)
            self._found = {name: found for name, found in self._found.items() if name in wanted}
            return {name: found for name, (_, found) in self._found.items()}

    async def _ask(self, name: str, nodes: Mapping[str, str]) -> None:
        document = await lookup(self._node, name, nodes, within=WITHIN)
        others = sorted(provider["node"] or provider["registry"] for provider in document["providers"])
        self._found[name] = (trio.current_time() + FRESH, others)
