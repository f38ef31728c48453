# What a router places again after its members have changed.

import random
from collections.abc import Iterable
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.dht.announcements import Announcements
from spegel_consul.ring.dht.keys import dht_key
from spegel_consul.ring.members.table import Members
from spegel_consul.ring.router import KadRouter
from tests.ring.sim_rig import SimRig


def contact(number: int) -> Contact:
    return Contact(b"peer %d" % number, (Address("10.9.9.9", 5001 + number),))


def tell_all(announcements: Announcements, now: float) -> None:
    while batches := announcements.batches(now):
        for batch in batches:
            announcements.told(batch, now)


def lose(router: KadRouter, peer: bytes) -> None:
    assert router._members.failed(peer, trio.current_time())
    router._on_loss(peer)
    router._on_change()


@pytest.mark.parametrize("change", ["lost", "back", "new"])
async def test_one_member_that_changes_concerns_only_the_keys_around_it(
    nursery: trio.Nursery, autojump_clock: MockClock, change: str
) -> None:
    router = await SimRig(nursery).node()
    for number in range(1000):
        router._members.learn(contact(number), trio.current_time(), direct=True)
    keys = [dht_key(f"key {number}") for number in range(4000)]
    router._on_change()
    await trio.sleep(1)
    if change == "back":
        lose(router, contact(7).id)
        await trio.sleep(0.2)
    router._announcements.add(keys)
    tell_all(router._announcements, trio.current_time())
    placed: list[bytes] = []

    def spy(keys: Iterable[bytes]) -> None:
        some = list(keys)
        placed.extend(some)
        Announcements.place(router._announcements, some)

    with (
        mock.patch.object(router._announcements, "place", spy),
        mock.patch.object(router, "_tell", mock.AsyncMock()),
    ):
        match change:
            case "lost":
                lose(router, contact(7).id)
            case "back":
                router._membership.heard(contact(7).id)
            case "new":
                router._membership.learn(contact(1000), direct=True)
        await trio.sleep(1)
        assert 20 < len(placed) < 400
        found = router._announcements.pending
        assert 20 < found < 200
        router._announcements.place(keys)
        assert router._announcements.pending == found, "all keys again would find no more"


class Ring:
    """The members of a small table, and the keys of one node."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.members = Members(b"me", capacity=100, rng=self.rng)
        self.announcements = Announcements(self.members.closest, ttl=900, rng=self.rng)
        self.now = 0.0

    def change(self) -> None:
        peer = contact(self.rng.randrange(150))
        some = [dht_key(f"key {number}") for number in self.rng.sample(range(300), 10)]
        match self.rng.randrange(8):
            case 0:
                self.members.learn(peer, self.now, direct=True)  # may evict another
            case 1:
                self.members.learn(peer, self.now, source=b"source")
            case 2:
                self.members.answered(peer.id, self.now)
            case 3:
                if self.members.failed(peer.id, self.now, replaced=self.rng.random() < 0.2):
                    self.announcements.lost(peer.id)
            case 4:
                self.announcements.add(some)
            case 5:
                self.announcements.remove(some)
            case 6:
                tell_all(self.announcements, self.now)
            case 7:
                self.now += 200

    def pending(self) -> dict[bytes, set[bytes]]:
        return {peer: set(target.pending) for peer, target in self.announcements._targets.items()}


@pytest.mark.parametrize("seed", range(20))
def test_the_keys_around_the_changes_are_all_that_the_changes_concern(seed: int) -> None:
    ring, saved = Ring(seed), 0
    for number in range(100):  # as many as the table takes
        ring.members.learn(contact(number), 0, direct=number % 3 > 0, source=b"source")
    ring.announcements.add(dht_key(f"key {number}") for number in range(300))
    ring.members.take_changes()
    for _ in range(25):
        for _ in range(ring.rng.choice((1, 2, 8))):
            ring.change()
        around = ring.announcements.around(ring.members.take_changes())
        assert len(set(around)) == len(around)
        saved += len(ring.announcements) - len(around)
        ring.announcements.place(around)
        found = ring.pending()
        ring.announcements.place(ring.announcements.keys())
        assert ring.pending() == found
    assert saved > 0
