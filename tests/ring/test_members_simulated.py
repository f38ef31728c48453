"""Members of a simulated ring: who is known, and for how long."""

from __future__ import annotations

import pytest
import trio
from conformance.router import eventually, eventually_finds
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import peer_id_to_text
from tests.ring.sim_rig import MINUTE, SimRig, rig

__all__ = ["rig"]


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
    unknown = peer_id_to_text(b"unknown")
    assert [routers[0].is_dead(each) for each in (routers[5].me.id, routers[1].me.id, unknown)] == [True, False, False]
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


async def test_a_member_whose_probes_tell_nothing_is_probed_for_ever(
    rig: SimRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[float] = []
    router = await rig.node()

    async def has_to_wait(peer: bytes, *_: object, **__: object) -> None:
        probed.append(trio.current_time())
        await trio.sleep(10)

    monkeypatch.setattr(router._membership, "ask", has_to_wait)
    peer = b"a" * 38
    router._membership.learn(Contact(peer, (Address("10.9.9.9", 5001),)), age=1, source=b"b" * 38)
    router._members.suspect(peer, trio.current_time())
    router._membership._reschedule_probes()
    await trio.sleep(600)
    assert 8 <= len(probed) <= 40
