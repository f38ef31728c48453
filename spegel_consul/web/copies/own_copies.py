"""Counts the nodes that have each of this node's images, in the background.

One lookup in the ring tells the other nodes that have the manifest of an image. Lookups cost other nodes work as well,
so they are few: a batch of them in each :data:`PAUSE`, and the next count begins :data:`INTERVAL` after the last one. A
person's question may need a count of its own, with short pauses, at most one in each :data:`FRESH` seconds. It takes
half a minute with thousands of images, so a node that asks hundreds of others is content with their last counts. At
most :data:`MOST` images are counted; several names of one digest are one image.

A node that is dead is no copy, though it may come back. A node that is downloading the image counts, because its
manifest comes first. An image whose lookup failed is unknown, and never reported as the only copy.

A rule about the count of this node's images belongs here; the other nodes' counts are asked for by
:mod:`spegel_consul.web.copies.cluster_copies`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import structlog
import trio

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import RingError
from spegel_consul.web.node_views import Document, Node

log = structlog.get_logger(__name__)

INTERVAL = 600.0
"""Seconds between two counts."""

FRESH = 60.0
"""Seconds for which a count answers a person's question."""

MOST = 2000
"""Images that are counted; a node with more says how many are left out."""

MOST_COPIES = 20
"""The greatest number of copies that can be asked for; the ring names no more providers of a key."""

BATCH, PAUSE = 4, 0.5
"""Concurrent lookups, and seconds between two batches: 2,000 images take four minutes."""

_FIRST = 60.0  # seconds after the start, when the ring has heard what this node has
_ENOUGH = 2  # other nodes that the background looks for: it tells images with one copy from those with more
_WITHIN = 3.0  # seconds of one lookup
_SHORT_PAUSE = 0.02  # seconds, for pulls that go on meanwhile


@dataclass(frozen=True, slots=True)
class Count:
    """The other nodes with each image, by digest; None if its lookup failed. ``enough``: others that were looked for.

    ``at``: the time at which it ended; ``left_out``: images beyond :data:`MOST`.
    """

    others: dict[Digest, tuple[str, ...] | None]
    enough: int
    at: float
    left_out: int


class OwnCopies:
    """The count of ``node``; :meth:`run` keeps it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._count: Count | None = None
        self._counting = trio.Lock()

    @property
    def only_here(self) -> int | None:
        """The number of images that no other node has, as of the last count; None before the first one."""
        if self._count is None:
            return None
        present = {image.digest for image in self._node.store.images()}
        return sum(others == () and digest in present for digest, others in self._count.others.items())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Count again and again, until cancelled."""
        task_status.started()
        await trio.sleep(_FIRST * random.uniform(1.0, 2.0))  # not all nodes of a cluster at once
        while True:
            self._count = await self._look(_ENOUGH, pause=PAUSE)
            await trio.sleep(INTERVAL * random.uniform(0.9, 1.1))

    async def fewer_than(self, wanted: int, *, last: bool = False) -> Document:
        """Return the images of this node that fewer than ``wanted`` nodes have, with this one, as a document.

        A count that is too old, or looked for too few, is made again; concurrent questions share one. With ``last``,
        only the images that are new, or on a node that has died since, are counted again.
        """
        count = self._count
        if last and count is not None and count.enough >= wanted - 1:
            await self._renew(count)
        else:
            async with self._counting:
                count = self._count
                if count is None or count.at < trio.current_time() - FRESH or count.enough < wanted - 1:
                    self._count = count = await self._look(max(_ENOUGH, wanted - 1), pause=_SHORT_PAUSE)
        names = self._node.cluster_members().names
        me, found = self._node.ring.me.id, []
        for stored in self._node.store.stored_images():
            others = count.others.get(stored.image.digest)
            if others is not None and len(others) + 1 < wanted:
                holders = [{"id": each, "node": names.get(each)} for each in (str(me), *others)]
                found.append(
                    {
                        "name": stored.image.name,
                        "digest": stored.image.digest,
                        "size": stored.size,
                        "nodes": sorted(holders, key=lambda each: (str(each["node"]), each["id"])),
                    }
                )
        return {
            "node": self._node.name,
            "images": found,
            "counted": len(count.others),
            "unknown": sum(others is None for others in count.others.values()),
            "left_out": count.left_out,
            "age": round(trio.current_time() - count.at, 1),
        }

    async def _look(self, enough: int, *, pause: float) -> Count:
        digests = self._digests()
        others: dict[Digest, tuple[str, ...] | None] = {}
        await self._count_into(others, digests[:MOST], enough, pause)
        return Count(others, enough, trio.current_time(), max(0, len(digests) - MOST))

    async def _renew(self, count: Count) -> None:
        """Count the images again that are new, or whose nodes have died since."""
        holders = {each for others in count.others.values() for each in others or ()}
        dead = set(filter(self._node.ring.is_dead, holders))
        changed = [
            each
            for each in self._digests()[:MOST]
            if each not in count.others or not dead.isdisjoint(count.others[each] or ())
        ]
        await self._count_into(count.others, changed, count.enough, _SHORT_PAUSE)

    def _digests(self) -> list[Digest]:
        return list(dict.fromkeys(image.digest for image in self._node.store.images()))

    async def _count_into(
        self, others: dict[Digest, tuple[str, ...] | None], digests: Sequence[Digest], enough: int, pause: float
    ) -> None:
        async def one(digest: Digest) -> None:
            others[digest] = await self._others(digest, enough)

        for start in range(0, len(digests), BATCH):
            if start:
                await trio.sleep(pause)
            async with trio.open_nursery() as nursery:
                for digest in digests[start : start + BATCH]:
                    nursery.start_soon(one, digest)

    async def _others(self, digest: Digest, enough: int) -> tuple[str, ...] | None:
        """Return the ids of at most ``enough`` living other nodes with the manifest; None if it can't be known."""
        ring = self._node.ring
        found: dict[str, None] = {}
        with trio.move_on_after(_WITHIN) as deadline:
            try:
                # more than are needed, because some may be dead
                with ring.lookup(digest, count=enough + 1) as providers:
                    async for provider in providers:
                        if provider.peer_id != ring.me.id and not ring.is_dead(provider.peer_id):
                            found[provider.peer_id] = None
            except RingError as exc:
                log.debug("copies of an image can't be counted", digest=digest, error=str(exc))
                return None
        if deadline.cancelled_caught and len(found) < enough:
            return None
        return tuple(found)[:enough]
