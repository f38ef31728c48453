"""The order of providers by their place, and the requests that cross zones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.peers import Provider
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.nearness import CrossZone, Nearness

from ...conftest import head
from ...image import BLOB_PATH, LAYER, STREAMED, get

HERE = Place("dc1", "a", "r1")
RACK, ZONE, FAR, OTHER = Place("dc1", "a", "r1"), Place("dc1", "a", "r2"), Place("dc1", "b"), Place("dc2", "a")
PEER = Provider("peer", ("10.0.0.1", 5000))


def nearness(mode: CrossZone = CrossZone.FALLBACK, here: Place = HERE) -> Nearness:
    return Nearness(Here(here), mode, Metrics().received_bytes)


def at(place: Place, port: int = 5000, rtt: float | None = None) -> Provider:
    return Provider(f"peer{port}", ("10.0.0.1", port), place=place, rtt=rtt)


def test_the_rank_is_by_place_then_by_round_trip_then_by_throughput() -> None:
    near = nearness()
    near.took(at(ZONE, 3), 4 << 20, waited=4.0)
    order = [
        at(RACK, 1, 0.5),
        at(ZONE, 2, 0.001),
        at(ZONE, 3),
        at(ZONE, 4, 0.05),
        at(ZONE, 5, 0.5),
        at(NOWHERE, 6, 0.001),
        at(OTHER, 7),
    ]
    assert [near.rank(each) for each in order] == sorted({near.rank(each) for each in order})


def test_equals_stay_equals() -> None:
    """Without places nodes of one network have one rank, whatever their round trips within it."""
    near = nearness(here=NOWHERE)
    assert len({near.rank(at(place, 1, rtt)) for place in (NOWHERE, FAR) for rtt in (None, 0.0002, 0.01)}) == 1


def test_an_estimate_stands_in_for_a_round_trip_that_was_not_measured() -> None:
    near = nearness(here=NOWHERE)
    near.estimate = {"peer1": 0.2, "peer2": 0.001}.get
    assert near.rank(at(NOWHERE, 2)) < near.rank(at(NOWHERE, 1))
    assert near.rank(at(NOWHERE, 1, 0.001)) == near.rank(at(NOWHERE, 2))


def test_a_transfer_that_waits_for_its_client_says_nothing_of_the_peer() -> None:
    near = nearness()
    before = near.rank(PEER)
    near.took(PEER, 100 << 20, waited=0.05)
    near.took(PEER, 1000, waited=9.0)
    assert near.rank(PEER) == before


@pytest.mark.parametrize(
    ("mode", "waits", "permits"),
    [(CrossZone.PREFER, False, True), (CrossZone.FALLBACK, True, True), (CrossZone.NEVER, False, False)],
)
def test_what_another_zone_is_for(mode: CrossZone, waits: bool, permits: bool) -> None:
    near = nearness(mode)
    for place in (FAR, OTHER):
        assert (near.waits(at(place)), near.permits(at(place))) == (waits, permits)
    for place in (RACK, ZONE, NOWHERE):
        assert (near.waits(at(place)), near.permits(at(place))) == (False, True)


async def zoned(start_node: Any, mode: CrossZone, **settings: Any) -> Any:
    asker = await start_node(settings=MirrorSettings(cross_zone=mode, verify_first=0, **settings))
    asker.mirror.peers.nearness.here.place = HERE
    return asker


def knows(asker: Any, *nodes: tuple[Any, Place]) -> None:
    asker.router.knows(*(node if isinstance(node, tuple) else node.address for node, _ in nodes))
    asker.router.providers = [
        replace(each, place=place) for each, (_, place) in zip(asker.router.providers, nodes, strict=True)
    ]


@pytest.mark.parametrize("mode", CrossZone)
async def test_content_of_the_own_zone_crosses_nothing(start_node: Any, mode: CrossZone) -> None:
    far, near, asker = await start_node(), await start_node(), await zoned(start_node, mode)
    for node in (far, near):
        node.store.add_content(LAYER)
    knows(asker, (far, FAR), (near, ZONE))
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    if mode is not CrossZone.PREFER:  # which asks the first one that the lookup names
        assert far.metric("spegel_served_bytes_total", {"source": "own"}) == 0
        assert asker.metric("spegel_received_bytes_total", {"place": "zone"}) == 3 * len(LAYER)


@pytest.mark.parametrize(
    ("mode", "status"), [(CrossZone.FALLBACK, 200), (CrossZone.PREFER, 200), (CrossZone.NEVER, 404)]
)
async def test_content_of_another_zone(start_node: Any, mode: CrossZone, status: int) -> None:
    far, asker = await start_node(), await zoned(start_node, mode)
    far.store.add_content(LAYER)
    knows(asker, (far, FAR))
    assert (await get(asker, BLOB_PATH)).status_code == status
    assert asker.metric("spegel_received_bytes_total", {"place": "datacenter"}) == (len(LAYER) if status == 200 else 0)
    assert asker.metric("spegel_received_bytes_total", {"place": "zone"}) == 0


async def test_when_the_near_one_fails_in_mid_body_another_zone_sends_the_rest(
    start_node: Any, start_peer: Any
) -> None:
    far, asker = await start_node(), await zoned(start_node, CrossZone.FALLBACK)
    far.store.add_content(LAYER)
    dying = await start_peer(head(200, len(LAYER)), LAYER[:500_000])
    knows(asker, (dying, ZONE), (far, FAR))
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_received_bytes_total", {"place": "zone"}) == 500_000
    assert asker.metric("spegel_received_bytes_total", {"place": "datacenter"}) == len(LAYER) - 500_000


async def test_a_liar_about_its_zone_attracts_requests_and_sends_no_wrong_byte(
    start_node: Any, start_peer: Any
) -> None:
    """A place proves nothing, so it decides only about the order."""
    honest, asker = await start_node(), await start_node(settings=MirrorSettings())
    asker.mirror.peers.nearness.here.place = HERE
    honest.store.add_content(LAYER)
    liar = await start_peer(head(200, len(LAYER)), bytes(len(LAYER)))
    knows(asker, (honest, FAR), (liar, RACK))
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert len(liar.requests) == 1
    assert asker.mirror.peers.penalties.bars(Provider("any", liar.address))
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert len(liar.requests) == 1, "it is barred, however near it says that it is"


async def test_a_node_that_says_it_is_far_only_sheds_load(start_node: Any) -> None:
    only, asker = await start_node(), await start_node(settings=STREAMED)
    asker.mirror.peers.nearness.here.place = HERE
    only.store.add_content(LAYER)
    knows(asker, (only, OTHER))
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_received_bytes_total", {"place": "other"}) == len(LAYER)
