"""Places in a ring: how they are known, and which providers a lookup yields first."""

from __future__ import annotations

import pytest
import trio
from conformance.router import eventually
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import Provider, peer_id_from_text, peer_id_of_ed25519
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.ring.dht.claim_reports import ClaimReport, What
from spegel_consul.ring.dht.keys import dht_key
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.router import KadRouter
from tests.ring.sim_rig import SimRig, raw_id

ZONES = [Place("dc1", "a"), Place("dc1", "b"), Place("dc1", "c")]
WORK = ClaimReport(serves=True, working=True)


@pytest.fixture
async def rig(nursery: trio.Nursery) -> SimRig:
    return SimRig(nursery)


async def ring(rig: SimRig, places: list[Place]) -> list[KadRouter]:
    routers = [await rig.node(here=Here(place)) for place in places]
    for router in routers[1:]:
        await router.join([routers[0].me])
    await eventually(lambda: all(len(router.members()) == len(places) - 1 for router in routers), within=120)
    return routers


def known(router: KadRouter) -> dict[str, Place]:
    return {member.id: member.place for member in router.view()}


def all_know(routers: list[KadRouter], places: list[Place]) -> bool:
    right = {router.me.id: place for router, place in zip(routers, places, strict=True)}
    return all(right[peer] == place for router in routers for peer, place in known(router).items())


async def found(router: KadRouter, key: str, count: int = 3) -> list[Provider]:
    with router.lookup(key, count=count) as providers:
        return [provider async for provider in providers]


async def test_all_learn_where_all_others_are(rig: SimRig, autojump_clock: MockClock) -> None:
    places = ZONES * 3 + [NOWHERE]
    routers = await ring(rig, places)
    await eventually(lambda: all_know(routers, places), within=120)


async def test_a_place_that_becomes_known_later_is_told(rig: SimRig, autojump_clock: MockClock) -> None:
    """Consul may answer after the ring was joined."""
    here = Here()
    late = await rig.node(here=here)
    others = [await rig.node(here=Here(ZONES[0])) for _ in range(5)]
    for router in others:
        await router.join([late.me])
    await eventually(lambda: all(len(router.members()) == 5 for router in others), within=120)
    here.place = ZONES[1]
    await eventually(lambda: all(known(router)[late.me.id or ""] == ZONES[1] for router in others), within=600)


async def test_a_place_that_becomes_known_just_after_the_start_is_told_at_once(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    here = Here()
    routers = [await rig.node(here=Here(ZONES[0])), await rig.node(here=here)]
    await routers[1].join([routers[0].me])
    await eventually(lambda: known(routers[0]) == {routers[1].me.id: NOWHERE}, within=2)
    here.place = ZONES[1]
    await eventually(lambda: known(routers[0]) == {routers[1].me.id: ZONES[1]}, within=1)


async def test_a_place_that_is_taken_back_is_forgotten(rig: SimRig, autojump_clock: MockClock) -> None:
    here = Here(ZONES[1])
    moved = await rig.node(here=here)
    others = [await rig.node(here=Here(ZONES[0])) for _ in range(5)]
    for router in others:
        await router.join([moved.me])
    await eventually(lambda: all(known(router).get(moved.me.id or "") == ZONES[1] for router in others), within=120)
    here.place = NOWHERE
    await eventually(lambda: all(known(router)[moved.me.id or ""] == NOWHERE for router in others), within=900)


async def test_a_lookup_yields_the_nearest_first(rig: SimRig, autojump_clock: MockClock) -> None:
    places = ZONES * 4
    routers = await ring(rig, places)
    await eventually(lambda: all_know(routers, places), within=120)
    for router in routers[3:]:
        await router.announce(["key"])
    await eventually(lambda: not any(router.unannounced for router in routers), within=60)
    for router, place in zip(routers[:3], places, strict=False):
        providers = await found(router, "key")
        assert [provider.place for provider in providers] == [place] * 3
        for provider in providers:
            router._members.answered(peer_id_from_text(provider.peer_id), trio.current_time(), 0.003)
        assert all(provider.rtt is not None for provider in await found(router, "key"))


async def test_a_keeper_of_claims_knows_the_zones(rig: SimRig, autojump_clock: MockClock) -> None:
    places = ZONES * 3
    routers = await ring(rig, places)
    await eventually(lambda: all_know(routers, places), within=120)
    verdicts = [await router.claim("group", WORK) for router in routers]
    assert [verdict.what for verdict in verdicts] == [What.CLAIM] + [What.FOLLOW] * 8
    sources = [verdict.sources[0].place for verdict in verdicts[1:]]
    crossing = [place for source, place in zip(sources, places[1:], strict=True) if source != place]
    assert crossing == ZONES[1:], "the first of each of the two other zones"


async def test_nodes_that_never_cross_claim_for_their_zone(rig: SimRig, autojump_clock: MockClock) -> None:
    places = ZONES * 2
    routers = await ring(rig, places)
    await eventually(lambda: all_know(routers, places), within=120)
    near = ClaimReport(serves=True, working=True, near_only=True)
    verdicts = [(await router.claim("group", near)).what for router in routers]
    assert verdicts == [What.CLAIM] * 3 + [What.FOLLOW] * 3


async def test_of_many_providers_an_answer_names_near_ones_and_others(rig: SimRig, autojump_clock: MockClock) -> None:
    """A small zone among large ones must find its own; a false place must not hide all others."""
    keeper = await rig.node(here=Here(ZONES[0]))
    asker = await rig.node(here=Here(ZONES[2]))
    await asker.join([keeper.me])
    now, key = trio.current_time(), dht_key("key")
    for number in range(100):
        peer = peer_id_of_ed25519(bytes(31) + bytes([number]))
        place = ZONES[2] if number < 12 else ZONES[number % 2]
        contact = Contact(peer, (Address(f"10.9.0.{number}", 5001),))
        keeper._members.learn(contact, now, direct=True, place=place)
        keeper._records.add(key, peer, now)
    near = {peer_id_of_ed25519(bytes(31) + bytes([number])) for number in range(12)}
    named = {peer.id for peer in keeper._answers._providers(key, raw_id(asker))}
    assert len(named) == REPLICAS
    assert REPLICAS // 2 <= len(named & near) <= 12
    without = {peer.id for peer in keeper._answers._providers(key, b"a stranger")}
    assert len(without) == REPLICAS
