"""Lookups in a simulated ring: who is asked, and which providers are named."""

from __future__ import annotations

import statistics

import pytest
import trio
from conformance.router import eventually, eventually_finds, find
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address
from spegel_consul.ring import Router
from spegel_consul.ring.dht.keys import dht_key
from spegel_consul.ring.dht.messages import Message, MessageType, WirePeer, encode
from spegel_consul.ring.members.member import SETTLED
from spegel_consul.ring.router import KadRouter
from tests.ring.sim_rig import MINUTE, SimRig, raw_id, rig

__all__ = ["rig"]


async def test_a_provider_that_hangs_is_found_out_although_all_records_are_here(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, second, _ = await rig.ring(3)
    await second.announce(["layer"])
    await eventually_finds(first, "layer", {second.me.id})
    await trio.sleep(MINUTE)
    rig.hosts[second.me.id].hung = True
    await find(first, "layer", count=1)  # is answered from here, and brings the question whether it lives
    await trio.sleep(1.5)
    assert await find(first, "layer") == []


async def reset_once(rig: SimRig, provider: Router, askers: list[KadRouter]) -> None:
    """All connections of ``provider`` break, its port refuses the next ones, and the ``askers`` have noticed it."""
    await trio.sleep(1)
    host = rig.hosts[provider.me.id]
    host.retire()
    for peer in host.connected():
        host.disconnect(peer)
    for asker in askers:
        await find(asker, "nobody has this")  # asks the provider too, which now counts as lost
        assert provider.me.id not in [member.id for member in asker.members()]
    rig.network.hosts[host.address.host, host.address.port] = host


async def test_a_provider_whose_connections_were_just_reset_is_named_after_the_others(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    routers = await rig.ring(5)
    await routers[1].announce(["only", "shared"])
    await routers[2].announce(["shared"])
    await eventually(lambda: not any(router.unannounced for router in routers))
    await reset_once(rig, routers[1], [routers[0], *routers[2:]])
    assert [provider.peer_id for provider in await find(routers[0], "only")] == [routers[1].me.id]
    shared = [provider.peer_id for provider in await find(routers[0], "shared")]
    assert shared == [routers[2].me.id, routers[1].me.id]
    await trio.sleep(0.2)
    assert len(routers[0].members()) == 4


async def test_a_provider_that_is_gone_is_named_until_a_second_connection_fails(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, second = await rig.ring(2)
    await second.announce(["layer"])
    await eventually_finds(first, "layer", {second.me.id})
    await rig.kill(second)
    await trio.sleep(0.3)
    assert await find(first, "layer") == []


async def test_one_reset_is_one_failure_however_many_questions_it_ends(rig: SimRig, autojump_clock: MockClock) -> None:
    first, second = await rig.ring(2)
    await second.announce(["layer"])
    await eventually_finds(first, "layer", {second.me.id})
    await trio.sleep(1)
    host = rig.hosts[second.me.id]
    host.retire()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(find, first, f"nobody has {number}")
        await trio.sleep(0.0005)
        host.disconnect(raw_id(first))
    rig.network.hosts[host.address.host, host.address.port] = host
    assert [provider.peer_id for provider in await find(first, "layer")] == [second.me.id]
    await trio.sleep(0.2)
    assert [member.id for member in first.members()] == [second.me.id]


@pytest.mark.parametrize("lies", [3, 20])
async def test_a_keeper_that_names_false_providers_does_not_hide_the_others(
    rig: SimRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, lies: int
) -> None:
    routers = await rig.ring(5)
    owners = routers[1:3]
    for owner in owners:
        await owner.announce(["layer"])
    await eventually(lambda: not any(router.unannounced for router in routers))
    liar, asker = routers[3], await rig.node()
    await asker.join([routers[0].me])
    await eventually(lambda: len(asker.members()) == 5)
    of_one_address = [
        WirePeer(rig.network.host().id, (Address("10.9.9.9", 5001).encode(), Address("10.9.9.9", 5000, True).encode()))
        for _ in range(lies)
    ]
    monkeypatch.setattr(liar._answers, "_providers", lambda key, asker: tuple(of_one_address))
    for _ in range(10):
        found = [provider.peer_id for provider in await find(asker, "layer")]
        assert {owner.me.id for owner in owners} <= set(found)
        assert len(found) <= 2 + 3


async def test_a_hit_asks_three_peers_and_none_if_its_records_are_here(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(35)
    for owner in routers[1:5]:
        await owner.announce(["layer"])
    await eventually(lambda: not any(router.unannounced for router in routers))
    await trio.sleep(1)
    far, near = [], []
    for asker in routers[5:]:
        before = rig.network.messages
        assert len(await find(asker, "layer")) >= 3
        (near if asker.records else far).append(rig.network.messages - before)
    assert len(far) > 5
    assert (statistics.median(near), statistics.median(far)) == (0, 2 * 3), "three questions and their answers"


async def test_a_miss_asks_all_while_the_ring_forms_and_three_when_it_has_settled(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    routers = await rig.ring(30)

    async def messages(asker: KadRouter, key: str) -> int:
        before = rig.network.messages
        assert await find(asker, key) == []
        return rig.network.messages - before

    forming = [await messages(router, "nobody has this") for router in routers]
    assert min(forming) >= 2 * 20, "the questions and their answers"
    await trio.sleep(2 * SETTLED)
    await messages(routers[0], "to open the streams")
    settled = [await messages(router, "nor this") for router in routers for _ in range(2)][1::2]
    assert statistics.median(settled) in (2 * 2, 2 * 3)


async def test_a_brief_question_is_answered_without_closer_peers(rig: SimRig, autojump_clock: MockClock) -> None:
    first, second, _ = await rig.ring(3)
    await second.announce(["layer"])
    key = dht_key("layer")
    for brief, closer in ((False, 1), (True, 0)):
        question = encode(Message(MessageType.GET_PROVIDERS, key, brief=brief))
        answer = await first._membership.ask(raw_id(second), question)
        assert answer is not None
        assert [each.id for each in answer.providers] == [raw_id(second)]
        assert len(answer.closer) == closer


async def test_a_hung_provider_is_neither_waited_for_nor_named(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(5)
    await routers[1].announce(["layer"])
    await eventually_finds(routers[0], "layer", {routers[1].me.id})
    rig.hosts[routers[1].me.id].hung = True
    await find(routers[0], "nobody has this")
    await eventually_finds(routers[0], "layer", set(), within=2.0)
    start = trio.current_time()
    assert await find(routers[0], "nor this") == []
    assert trio.current_time() - start < 0.05
    # and when it comes to itself it is a member again, with all that it had
    rig.hosts[routers[1].me.id].hung = False
    await eventually_finds(routers[0], "layer", {routers[1].me.id}, within=90)


async def test_a_hung_peer_delays_a_hit_by_a_hedge_interval_at_most(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(6)
    for router in routers[3:5]:
        await router.announce(["layer"])
    await eventually_finds(routers[0], "layer", {router.me.id for router in routers[3:5]})
    fresh = await rig.node()
    await fresh.join([routers[0].me])
    for router in routers[1:3]:
        rig.hosts[router.me.id].hung = True
    start = trio.current_time()
    with fresh.lookup("layer", count=1) as providers:
        async for _ in providers:
            break
    assert trio.current_time() - start < 0.1
