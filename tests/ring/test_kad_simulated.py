"""The router in a simulated ring: records, and what a member is told."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from conformance.router import RouterSuite, eventually, eventually_finds, find
from sim.network import SimHost
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import RingError
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.protocol_ids import WITHDRAW
from spegel_consul.ring.net import routes
from spegel_consul.ring.net.host import Stream
from tests.ring.sim_rig import MINUTE, SimRig, raw_id, rig

__all__ = ["rig"]


class TestKadRouterSimulated(RouterSuite):
    pass


@pytest.mark.parametrize("routed", [True, False])
async def test_of_two_addresses_both_are_told_unless_there_is_no_way_to_the_first(
    rig: SimRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, routed: bool
) -> None:
    monkeypatch.setattr("spegel_consul.ring.router.has_route", lambda address: routed)
    holder, asker = await rig.node(secondary="fd00::7"), await rig.node()
    assert await asker.join([holder.me]) == 1
    await holder.announce(["key"])
    await eventually_finds(asker, "key", {holder.me.id})
    (provider,) = await find(asker, "key")
    host, port = rig.registry(holder)
    first, second = (host, port), ("fd00::7", port)
    assert (provider.registry, provider.secondary) == ((first, second) if routed else (second, None))


@pytest.mark.parametrize("reached", [True, False])
async def test_a_registry_that_is_not_announced_is_where_its_router_was_reached(
    rig: SimRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """The peer names its bridge, which this machine has too, before the address at which others reach it."""
    own = {"172.17.0.1", "fd00::1"}
    monkeypatch.setattr(routes, "_source", lambda to: to.host if to.host in own else "192.168.1.5")
    asker, foreign = await rig.node(), await rig.node(address="192.168.1.7")
    hosts = ("172.17.0.1", "192.168.1.8", "192.168.1.7") if reached else ("172.17.0.1", "192.168.1.7", "192.168.1.8")
    routers = tuple(Address(host, 5001) for host in ("fd00::1", *hosts, "fd00::7"))
    asker._membership.learn(Contact(raw_id(foreign), routers), direct=True)
    asker._records.add(dht_key("key"), raw_id(foreign), trio.current_time())
    if reached:
        await asker._host.dial("192.168.1.7", 5001)
    (provider,) = await find(asker, "key")
    port = rig.registry(asker)[1]
    assert (provider.registry, provider.secondary) == (("192.168.1.7", port), ("fd00::7", port))


async def test_records_live_as_long_as_they_are_announced_and_no_longer(rig: SimRig, autojump_clock: MockClock) -> None:
    first, second, third = await rig.ring(3)
    await first.announce(["kept", "withdrawn"])
    for key in ("kept", "withdrawn"):
        await eventually_finds(second, key, {first.me.id})
    await first.announce([], ["withdrawn"])
    await eventually(lambda: second.records == third.records == 1, within=1)
    assert await find(second, "withdrawn") == []
    for _ in range(12):
        await trio.sleep(10 * MINUTE)
        for router in (second, third):
            assert [provider.peer_id for provider in await find(router, "kept")] == [first.me.id]
    await rig.kill(first)
    await trio.sleep(21 * MINUTE)
    assert (second.records, third.records) == (0, 0)


async def test_what_is_withdrawn_long_after_it_was_told_is_withdrawn_at_once(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, second = await rig.ring(2)
    await first.announce(["kept", "withdrawn"])
    await trio.sleep(MINUTE)
    assert second.records == 2
    await first.announce([], ["withdrawn"])
    await eventually(lambda: second.records == 1, within=1)


async def test_many_keys_are_withdrawn_in_slices(rig: SimRig, nursery: trio.Nursery) -> None:
    router, rounds = await rig.node(), 0
    names = [f"layer {number}" for number in range(2000)]
    await router.announce(names)

    async def others() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(others)
    await trio.lowlevel.checkpoint()
    before = rounds
    await router.announce((), names)
    assert rounds - before >= 7


async def test_nodes_that_leave_together_do_not_make_others_visit_all_records(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    visits = 0

    class Buckets(list[bytearray]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal visits
            visits += 1
            return super().__getitem__(index)

    keeper, *leavers = await rig.ring(11)
    for leaver in leavers:
        await leaver.announce(["an image"])
    await eventually(lambda: keeper.records == 10)
    now, records = trio.current_time(), keeper._records
    for number in range(50_000):
        records.add(b"%d" % number, b"others %d" % (number % 100), now)
    passes = len(records._buckets)
    records._buckets = Buckets(records._buckets)
    async with trio.open_nursery() as leaving:
        for leaver in leavers:
            leaving.start_soon(leaver.leave)
    assert await find(keeper, "an image") == []
    await trio.sleep(MINUTE)
    assert keeper.records == 50_000
    assert visits < 2 * passes


async def test_a_record_that_is_withdrawn_from_those_who_do_not_understand_it_expires(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, foreign = await rig.node(), await rig.node(speaks_members=False)
    await first.join([foreign.me])
    await first.announce(["key"])
    await eventually(lambda: foreign.records == 1)
    await first.announce([], ["key"])
    await trio.sleep(15 * MINUTE)
    assert foreign.records == 1
    await trio.sleep(6 * MINUTE)
    assert foreign.records == 0
    assert first.unannounced == 0


async def test_a_peer_that_refuses_a_withdrawal_hears_it_again_and_is_told_keys_meanwhile(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, second = await rig.ring(2)
    handlers, refused = rig.hosts[second.me.id]._handlers, 0
    serve = handlers[WITHDRAW]

    async def refuse(stream: Stream) -> None:
        nonlocal refused
        refused += 1
        raise RingError("not now")

    await first.announce(["key"])
    await eventually(lambda: second.records == 1)
    handlers[WITHDRAW] = refuse
    await first.announce([f"new {number}" for number in range(500)], ["key"])
    await trio.sleep(MINUTE)
    assert second.records == 501
    assert first.unannounced == 0
    assert 5 < refused < 20
    handlers[WITHDRAW] = serve
    await trio.sleep(MINUTE)
    assert second.records == 500
    before = rig.network.messages
    await trio.sleep(MINUTE)
    assert rig.network.messages - before < 20, "then there is nothing left to say"


async def test_whoever_lost_its_identity_is_not_looked_for_at_its_address(
    rig: SimRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, third = await rig.ring(3)
    address, before = rig.hosts[third.me.id].address.host, raw_id(third)
    asked = []
    opened = SimHost.open

    async def noting(self: SimHost, peer: bytes, *others: Any) -> Any:
        if peer == before:
            asked.append(trio.current_time())
        return await opened(self, peer, *others)

    monkeypatch.setattr(SimHost, "open", noting)
    again = await rig.node(address=address)
    await rig.kill(third)
    await again.join([first.me])
    await eventually(lambda: len(first.members()) == 2)
    await trio.sleep(20 * MINUTE)
    assert len(asked) <= 3 * 3, "when it went, perhaps once more, and when nobody names it any more; by each"
    assert before not in [member.id for member in first._members]


async def test_a_new_member_is_told_only_what_it_is_responsible_for(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(45)
    keys = [f"key {number}" for number in range(300)]
    await routers[0].announce(keys)
    await eventually(lambda: not routers[0].unannounced)
    sent = rig.network.messages
    fresh = await rig.node()
    await fresh.join([routers[7].me])
    await eventually(lambda: len(fresh.members()) == 45 and fresh.records > 0)
    await trio.sleep(5)
    everybody = [raw_id(router) for router in (*routers, fresh)]
    mine = sum(
        raw_id(fresh) in sorted(set(everybody) - {raw_id(routers[0])}, key=lambda id: position(id) ^ at)[:20]
        for at in map(position, map(dht_key, keys))
    )
    assert 0 < mine < 300
    assert fresh.records == mine
    assert rig.network.messages - sent < 1500, "nobody else was told anything again"


async def test_placement_with_more_members_than_replicas(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(35)
    keys = {f"key {number}": routers[number % 35] for number in range(70)}
    for key, router in keys.items():
        await router.announce([key])
    await eventually(lambda: not any(router.unannounced for router in routers))
    for number, (key, owner) in enumerate(keys.items()):
        await eventually_finds(
            routers[(number * 7 + 1) % 35], key, {owner.me.id} - {routers[(number * 7 + 1) % 35].me.id}
        )
    assert 70 * 18 <= sum(router.records for router in routers) <= 70 * 20 * 2

    # those who hold the records of some keys die: the keys are told to the next nearest
    for victim in routers[1:8]:
        await rig.kill(victim)
    survivors = [routers[0], *routers[8:]]
    await trio.sleep(150)
    for key, owner in keys.items():
        if owner in survivors:
            asker = survivors[(survivors.index(owner) + 5) % len(survivors)]
            await eventually_finds(asker, key, {owner.me.id})
