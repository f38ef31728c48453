"""Several bootstraps in order of preference, in virtual time."""

from __future__ import annotations

import trio
import trio.testing

from spegel_consul.join.fallback import WIDEN_EVERY, SeveralBootstraps
from spegel_consul.join.sources.static import StaticBootstrap
from spegel_consul.peers import PeerInfo

ME = PeerInfo("me", ("/ip4/10.0.0.9/tcp/5001",))
CORPSE, SECOND, THIRD = "10.0.0.1:5001", "10.0.0.2:5001", "10.0.0.3:5001"


def where(bootstrap: SeveralBootstraps) -> list[str]:
    return [addr.split("/")[2] for peer in bootstrap.peers() for addr in peer.addrs]


async def test_the_next_bootstrap_is_used_while_no_peer_can_be_reached(autojump_clock: trio.testing.MockClock) -> None:
    lonely = True
    ways = [(text, StaticBootstrap([text])) for text in (CORPSE, SECOND, THIRD)]
    bootstrap = SeveralBootstraps(ways, ME, lambda: lonely)
    async with trio.open_nursery() as nursery:
        await nursery.start(bootstrap.run)
        assert where(bootstrap) == ["10.0.0.1"]
        before = bootstrap.peers()
        with trio.fail_after(2 * WIDEN_EVERY):
            await bootstrap.changed(before)
        assert where(bootstrap) == ["10.0.0.1", "10.0.0.2"]
        await trio.sleep(5 * WIDEN_EVERY)
        assert where(bootstrap) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        lonely = False
        await trio.sleep(2 * WIDEN_EVERY)
        assert where(bootstrap) == ["10.0.0.1"]
        nursery.cancel_scope.cancel()


class Elected(StaticBootstrap):
    """The first of a list leads."""

    @property
    def leader(self) -> PeerInfo | None:  # type: ignore[override]
        return self.peers()[0] if self.peers() else None


async def test_only_the_election_of_a_bootstrap_in_use_names_the_leader(autojump_clock: trio.testing.MockClock) -> None:
    election, of_me, list_ = Elected([SECOND]), Elected(["10.0.0.9:5001"]), StaticBootstrap([THIRD])
    nobody_yet = Elected([])
    for ways, expected in (
        ((election, list_), election.leader),
        ((list_, election), None),
        ((of_me, list_), of_me.leader),
        ((nobody_yet, list_), None),
        ((nobody_yet, election, of_me), election.leader),
        ((list_,), None),
    ):
        bootstrap = SeveralBootstraps([(f"{at}", way) for at, way in enumerate(ways)], ME, lambda: False)
        async with trio.open_nursery() as nursery:
            await nursery.start(bootstrap.run)
            assert bootstrap.leader == expected
            nursery.cancel_scope.cancel()


async def test_a_fallback_in_use_names_the_leader(autojump_clock: trio.testing.MockClock) -> None:
    election = Elected([SECOND])
    ways = [("list", StaticBootstrap([CORPSE])), ("election", election)]
    bootstrap = SeveralBootstraps(ways, ME, lambda: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(bootstrap.run)
        assert bootstrap.leader is None
        await trio.sleep(2 * WIDEN_EVERY)
        assert bootstrap.leader == election.leader
        nursery.cancel_scope.cancel()


async def test_a_bootstrap_that_names_only_this_node_is_passed_over(autojump_clock: trio.testing.MockClock) -> None:
    ways = [("self", StaticBootstrap(["10.0.0.9:5001"])), ("list", StaticBootstrap([SECOND]))]
    bootstrap = SeveralBootstraps(ways, ME, lambda: False)
    async with trio.open_nursery() as nursery:
        await nursery.start(bootstrap.run)
        assert where(bootstrap) == ["10.0.0.2"]
        await trio.sleep(10 * WIDEN_EVERY)
        assert where(bootstrap) == ["10.0.0.2"]
        nursery.cancel_scope.cancel()


async def test_the_problem_is_that_of_those_before_the_one_in_use(autojump_clock: trio.testing.MockClock) -> None:
    class Broken(StaticBootstrap):
        problem = "refused"  # type: ignore[assignment]

    for ways, expected in (
        ([("a", Broken([])), ("b", StaticBootstrap([SECOND]))], "a: refused"),
        ([("b", StaticBootstrap([SECOND])), ("a", Broken([]))], None),
        ([("a", Broken([])), ("b", Broken([]))], "a: refused; b: refused"),
    ):
        bootstrap = SeveralBootstraps(ways, ME, lambda: False)
        async with trio.open_nursery() as nursery:
            await nursery.start(bootstrap.run)
            assert bootstrap.problem == expected
            nursery.cancel_scope.cancel()
