"""A cold pull in a ring with a router that knows Spegel's Kademlia only, as Go Spegel does, over real libp2p."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from conformance.router import eventually
from structlog.testing import capture_logs

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.dht.protocol_ids import KAD
from spegel_consul.ring.net.host import Handler
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter

from .following.growing_source import DownloadingStore
from .test_cold_cluster import FOLLOW, Image, Runtime, Upstream

ADDRESS = "127.0.0.1"


class SpegelHost(Libp2pHost):
    """Serves no protocol but Spegel's."""

    def serve(self, protocol: str, handler: Handler) -> None:
        if protocol == KAD:
            super().serve(protocol, handler)


class LaterRouter:
    """The router of a node that is built before its registry has an address."""

    router: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)


async def spegel(nursery: trio.Nursery) -> PeerInfo:
    """A node that speaks Spegel's protocol only."""
    host = SpegelHost(load_or_create(None), bind=(ADDRESS, 0))
    router = KadRouter(host, registry=(ADDRESS, 5000))
    await nursery.start(router.run)
    return router.me


@pytest.mark.parametrize("groups", [range(1, 5)], ids=["four images"])
async def test_a_cold_pull_beside_a_spegel(
    start_node: Any, tmp_path: Path, nursery: trio.Nursery, groups: range
) -> None:
    """It keeps no claims, so the nodes of this program find one keeper for each image, wherever its key lies."""
    foreign, upstream, runtimes, routers = await spegel(nursery), Upstream(), [], []
    with capture_logs() as said:
        for number in range(2):
            later = LaterRouter()
            store = DownloadingStore(tmp_path / f"node{number}")
            node = await start_node(settings=FOLLOW, store=store, router=later)
            host = Libp2pHost(load_or_create(None), bind=(ADDRESS, 0))
            later.router = KadRouter(host, registry=node.address)
            await nursery.start(later.router.run)
            await later.router.join([foreign, *(each.me for each in routers)])
            routers.append(later.router)
            runtimes.append(Runtime(node, upstream))
        await eventually(lambda: all(len(each.members()) == 2 for each in routers), within=30)
        for image in map(Image, groups):
            with trio.fail_after(30):
                async with trio.open_nursery() as pulls:
                    for each in runtimes:
                        pulls.start_soon(each.pull, image)
            assert all(each.has_all_of(image) for each in runtimes)
            assert upstream.copies(image) == 1.0
    assert sum(len(each._claiming._claims) for each in routers) >= len(groups)
    assert sum(each.node.metric("spegel_claims_total", {"verdict": "none"}) for each in runtimes) == 0
    assert [each for each in said if each["log_level"] not in ("debug", "info")] == []
    assert {Digest.of(each) for number in groups for each in Image(number).layers} <= runtimes[0].has
