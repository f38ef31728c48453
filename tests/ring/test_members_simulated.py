"""Members of a simulated ring: who is known, and for how long."""

from __future__ import annotations

import trio
from conformance.router import eventually, eventually_finds
from trio.testing import MockClock

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
