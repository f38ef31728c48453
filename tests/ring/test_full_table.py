# A ring with more nodes than a table has places, over the simulated network.

from functools import partial

import trio
from conformance.router import eventually
from ring.test_kad_simulated import SimRig
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.members.table import FULL


async def test_a_full_table_is_told_once_and_its_end_too(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    rig = SimRig(nursery)
    first, joined = await rig.node(), []
    first._members._capacity = 3
    with capture_logs() as logs:
        for number in range(1, 6):
            assert (first.warning is not None) == (number > 3)
            joined.append(await rig.node())
            await joined[-1].join([first.me])
            await eventually(partial(lambda most: len(first.members()) == most, min(3, number)))
        assert first.warning == FULL
        for router in joined:
            await rig.kill(router)
        await eventually(lambda: first.warning is None, within=120)
    told = [each for each in logs if each["event"].startswith("ring_table")]
    mine = [(each["event"], each["log_level"]) for each in told]
    assert mine == [("ring_table_full", "warning"), ("ring_table_has_room", "info")]
    assert told[0]["means"] == FULL


async def test_a_member_that_was_evicted_while_it_lived_is_told_nothing_more(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig = SimRig(nursery)
    first = await rig.node()
    first._members._capacity = 8
    for number in range(8):
        named = Contact(b"%d" % number * 38, (Address("10.9.9.9", 5001),), Address("10.9.9.9", 5000, http=True))
        first._membership.learn(named, age=1, source=b"a" if number % 2 else b"b")
    await first.announce([f"key {number}" for number in range(50)])
    for _ in range(4):
        await (await rig.node()).join([first.me])
    await trio.sleep(120)
    assert {peer for peer in first._announcements._targets if first._members.get(peer) is None} == set()
    assert first.unannounced == 0
