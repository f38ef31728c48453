import itertools
import random
import statistics
from typing import Any

import pytest
import trio
from conformance.router import RouterSuite, eventually, eventually_finds, find
from sim.network import SimHost, SimNetwork
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError, peer_id_from_text
from spegel_consul.places import Here
from spegel_consul.ring import Router
from spegel_consul.ring.dht.claim_forest import CHAIN
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.messages import Message, MessageType, WirePeer, encode
from spegel_consul.ring.dht.protocol_ids import MEMBERS, WITHDRAW
from spegel_consul.ring.members.member import SETTLED
from spegel_consul.ring.net.host import Stream
from spegel_consul.ring.router import KadRouter

MINUTE = 60.0


def raw_id(router: Router) -> bytes:
    assert router.me.id is not None
    return peer_id_from_text(router.me.id)


class SimRig:
    """Routers in a simulated network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ports = itertools.count(5000)
        self._lives: dict[str | None, tuple[trio.CancelScope, trio.Event]] = {}
        self._registries: dict[str | None, tuple[str, int]] = {}
        self.network = SimNetwork()
        self.hosts: dict[str | None, SimHost] = {}

    async def node(
        self,
        *,
        speaks_members: bool = True,
        follow_chain: int = CHAIN,
        secondary: str | None = None,
        address: str | None = None,
        here: Here | None = None,
    ) -> KadRouter:
        host = self.network.host(address)
        registry = (host.address.host, next(self._ports))
        router = KadRouter(
            host,
            registry=registry,
            secondary=secondary,
            follow_chain=follow_chain,
            rng=random.Random(registry[1]),
            here=here,
        )
        if not speaks_members:
            host.refuse(MEMBERS)
            host.refuse(WITHDRAW)
        scope, ended = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await router.run(task_status=task_status)
            finally:
                ended.set()

        await self._nursery.start(run)
        self._lives[router.me.id], self._registries[router.me.id] = (scope, ended), registry
        self.hosts[router.me.id] = host
        return router

    async def kill(self, router: Router) -> None:
        scope, ended = self._lives[router.me.id]
        scope.cancel()
        await ended.wait()

    def registry(self, router: Router) -> tuple[str, int]:
        return self._registries[router.me.id]

    async def ring(self, size: int) -> list[KadRouter]:
        routers = [await self.node() for _ in range(size)]
        for router in routers[1:]:
            assert await router.join([routers[0].me]) == 1
        await eventually(lambda: all(len(router.members()) == size - 1 for router in routers), within=120)
        return routers


@pytest.fixture
async def rig(nursery: trio.Nursery) -> SimRig:
    return SimRig(nursery)


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
    async with fresh.lookup("layer", count=1) as providers:
        async for _ in providers:
            break
    assert trio.current_time() - start < 0.1


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


async def test_a_peer_without_the_member_exchange_is_a_member_too(rig: SimRig, autojump_clock: MockClock) -> None:
    first, second = await rig.ring(2)
    foreign = await rig.node(speaks_members=False)
    assert await first.join([foreign.me]) == 1
    await eventually(lambda: len(first.members()) == 2 and len(foreign.members()) >= 1)
    await foreign.announce(["theirs"])
    await second.announce(["ours"])
    await eventually_finds(first, "theirs", {foreign.me.id})
    await eventually_finds(foreign, "ours", {second.me.id})


async def test_the_dead_are_forgotten_by_all_and_hearsay_does_not_bring_them_back(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    routers = await rig.ring(6)
    await trio.sleep(5)  # who has only heard of it so far has greeted it by now, and has a connection that breaks
    await rig.kill(routers[5])
    await eventually(lambda: all(len(router.members()) == 4 for router in routers[:5]), within=2)
    for _ in range(60):
        await trio.sleep(MINUTE)
        assert [len(router.members()) for router in routers[:5]] == [4] * 5


async def test_members_that_have_not_noticed_a_death_bring_nobody_back(rig: SimRig, autojump_clock: MockClock) -> None:
    """In a larger ring a node has no connection to some of the others, which break in no moment."""
    routers = await rig.ring(40)
    await trio.sleep(MINUTE)
    gone = routers.pop()
    unaware = len(routers) - len(rig.hosts[gone.me.id].connected())
    assert unaware > 2
    await rig.kill(gone)

    def listing() -> int:
        return sum(any(member.id == gone.me.id for member in router.members()) for router in routers)

    await eventually(lambda: listing() <= unaware, within=5)
    for _ in range(8):
        await trio.sleep(MINUTE)
        assert listing() <= unaware


async def test_a_quiet_ring_stays_together(rig: SimRig, autojump_clock: MockClock) -> None:
    routers = await rig.ring(4)
    await trio.sleep(6 * 60 * MINUTE)
    assert [len(router.members()) for router in routers] == [3] * 4
