"""Parts of a ring that lost each other, and members that a catalog or a bootstrap names and the ring does not have."""

from collections.abc import Sequence

import structlog
import trio
from fakes.memory_router import MemoryRing, MemoryRouter
from join.keeping import Catalog, Named, Recorder, keep, other, ring_of
from trio.testing import MockClock

from spegel_consul.join.schedule import EVERY
from spegel_consul.peers import PeerInfo


async def test_two_rings_of_one_catalog_are_found_out_and_become_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    left, right = await ring_of(nursery, ring, 3), await ring_of(nursery, ring, 3)
    router = Recorder(ring)
    catalog = Catalog(router.me, *(each.me for each in left))
    keeper = await keep(nursery, router, Named(left[0].me), known_routers=catalog)
    await trio.sleep(100)
    assert (keeper.missing, len(router.members())) == (0, 3)
    catalog.named += tuple(each.me for each in right)
    await trio.sleep(5 + 5.1)
    assert len(router.members()) == len(left[2].members()) == len(right[2].members()) == 6
    assert keeper.missing == 0


async def test_a_split_that_stays_is_told_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    class OneWay(Recorder):
        """Reaches others and does not keep them, as behind a firewall that lets nothing back."""

        async def join(self, peers: Sequence[PeerInfo]) -> int:
            self.times.append(trio.current_time())
            return len(peers) if stranger.me in peers else await MemoryRouter.join(self, peers)

    ring = MemoryRing()
    router, friend, stranger = OneWay(ring), await other(nursery, ring), await other(nursery, ring)
    catalog = Catalog(router.me, friend.me, stranger.me)
    with structlog.testing.capture_logs() as logs:
        keeper = await keep(nursery, router, Named(friend.me), known_routers=catalog)
        await trio.sleep(600)
    assert [entry["event"] for entry in logs] == ["ring_joined", "ring_split"]
    assert (keeper.splits, keeper.missing) == (1, 1)
    catalog.named = (router.me, friend.me)
    await trio.sleep(200)
    assert keeper.missing == 0


async def test_a_catalog_that_is_empty_filtered_or_old_removes_no_member(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    friends = await ring_of(nursery, ring, 3)
    gone = MemoryRouter(ring, registry=("127.0.0.1", 2))
    router = Recorder(ring)
    catalog = Catalog(router.me, *(each.me for each in friends))
    bootstrap = Named(friends[0].me)
    keeper = await keep(nursery, router, bootstrap, known_routers=catalog)
    everybody = {each.me for each in friends}
    for named in ((), (router.me,), (friends[1].me,), (gone.me,), (gone.me, *everybody)):
        catalog.named = named
        bootstrap.name(*named)
        await trio.sleep(200)
        assert set(router.members()) == everybody
    assert keeper.missing == 1, "the one that is gone is named, and tried now and then"
    assert keeper.splits == 0
    assert keeper.last_error is None


async def test_a_named_peer_that_was_forgotten_is_joined_again_within_two_minutes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A long outage between two sites removes the members of each from the tables of the other."""
    ring = MemoryRing()
    near, far = await ring_of(nursery, ring, 2), MemoryRouter(ring, registry=("127.0.0.1", 2))
    router = Recorder(ring)
    named = Named(near[0].me, PeerInfo(None, far.me.addrs))
    keeper = await keep(nursery, router, named, known_routers=Catalog(router.me, *(each.me for each in near)))
    await trio.sleep(600)
    assert len(router.members()) == 2
    assert 8 <= len(router.times) <= 14, "the absent one is tried about once a minute"
    assert (keeper.splits, keeper.missing, keeper.last_error) == (0, 0, None)
    await nursery.start(far.run)
    await trio.sleep(80)
    assert set(router.members()) == {near[0].me, near[1].me, far.me}


async def test_a_named_peer_that_starts_later_is_joined_within_seconds(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    (near,), late = await ring_of(nursery, ring, 1), MemoryRouter(ring, registry=("127.0.0.1", 2))
    router = Recorder(ring)
    await keep(nursery, router, Named(near.me, PeerInfo(None, late.me.addrs)))
    await trio.sleep(1)
    assert router.members() == (near.me,)
    await nursery.start(late.run)
    await trio.sleep(20)
    assert set(router.members()) == {near.me, late.me}


async def test_a_named_peer_that_is_a_member_under_another_address_is_joined_as_seldom_as_all(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Translated(Recorder):
        async def join(self, peers: Sequence[PeerInfo]) -> int:
            return await super().join([friend.me if peer == by_name else peer for peer in peers])

    ring = MemoryRing()
    router, friend = Translated(ring), await other(nursery, ring)
    by_name = PeerInfo(None, ("/dns4/friend.example/tcp/5001",))
    keeper = await keep(nursery, router, Named(by_name))
    await trio.sleep(3 * EVERY)
    assert router.members() == (friend.me,)
    assert len(router.times) <= 7
    assert keeper.splits == 0


async def test_a_catalog_without_ids_is_compared_by_address(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    catalog = Catalog(*(PeerInfo(None, each.me.addrs) for each in (router, friend)))
    keeper = await keep(nursery, router, Named(), known_routers=catalog)
    await trio.sleep(20)
    assert router.members() == (friend.me,)
    await trio.sleep(600)
    assert (len(router.times), keeper.missing) == (1, 0)
