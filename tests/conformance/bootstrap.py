# What every Bootstrap must do, whatever it asks.  A test module derives a class from BootstrapSuite and gives it a
# fixture `place`: something that names peers, and can be made to name others, to fail and to recover.

"""The conformance suite of the ``Bootstrap`` protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from spegel_consul.join import Bootstrap
from spegel_consul.peers import PeerInfo

WITHIN = 30.0
"""Seconds; a place that was down may take a while until it is asked again."""


class Place(Protocol):
    """Where a bootstrap looks. Peers are ``(IPv4 address, port)`` of routers."""

    async def bootstrap(self) -> Bootstrap:
        """A bootstrap that looks here and does not run yet."""
        ...

    async def name(self, *peers: tuple[str, int]) -> None:
        """These are the peers from now on."""
        ...

    async def fail(self) -> None:
        """From now on there is no answer of use, or none at all."""
        ...

    async def recover(self) -> None:
        """Answer again, with what was named last."""
        ...


def where(peers: Sequence[PeerInfo]) -> set[str]:
    return {addr for peer in peers for addr in peer.addrs}


def router(peer: tuple[str, int]) -> str:
    return f"/ip4/{peer[0]}/tcp/{peer[1]}"


@asynccontextmanager
async def running(bootstrap: Bootstrap) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(1):
            await nursery.start(bootstrap.run)
        yield
        nursery.cancel_scope.cancel()


async def names(bootstrap: Bootstrap, *expected: tuple[str, int]) -> None:
    """Return when exactly these are named."""
    wanted = {router(peer) for peer in expected}
    try:
        with trio.fail_after(WITHIN):
            while where(peers := bootstrap.peers()) != wanted:
                await bootstrap.changed(peers)
    except trio.TooSlowError:
        raise AssertionError(f"names {bootstrap.peers()}, not {wanted}; {bootstrap.problem}") from None


async def has_problem(bootstrap: Bootstrap, expected: bool) -> str:
    with trio.fail_after(WITHIN):
        while (bootstrap.problem is not None) is not expected:
            await trio.sleep(0.01)
    return bootstrap.problem or ""


FIRST, SECOND, THIRD = ("10.0.0.1", 5001), ("10.0.0.2", 5001), ("10.0.0.3", 5001)


class NamingSuite:
    """Derive from it and define the fixture ``place``; for places whose answer never changes."""

    elects = False
    """Whether the one that the place names was elected."""

    async def test_it_names_what_the_place_names(self, place: Place) -> None:
        await place.name(FIRST)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST)
            await has_problem(bootstrap, False)
            self.leads(bootstrap, FIRST)

    def leads(self, bootstrap: Bootstrap, peer: tuple[str, int]) -> None:
        """Check who leads: the one that is named where one was elected, nobody elsewhere."""
        if self.elects:
            assert bootstrap.leader is not None
            assert bootstrap.leader.addrs == (router(peer),)
        else:
            assert bootstrap.leader is None

    async def test_nothing_wakes_who_waits_without_a_change(self, place: Place) -> None:
        await place.name(FIRST)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST)
            with trio.move_on_after(0.3) as scope:
                await bootstrap.changed(bootstrap.peers())
            assert scope.cancelled_caught
            with trio.fail_after(1):
                await bootstrap.changed(())

    async def test_it_ends_at_once_when_cancelled(self, place: Place) -> None:
        await place.name(FIRST)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST)
            ending = trio.current_time() + 4
        assert trio.current_time() < ending


class BootstrapSuite(NamingSuite):
    """Derive from it and define the fixture ``place``."""

    async def test_a_change_wakes_who_waits(self, place: Place) -> None:
        await place.name(FIRST)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST)
            before = bootstrap.peers()
            await place.name(SECOND)
            with trio.fail_after(WITHIN):
                await bootstrap.changed(before)
            await names(bootstrap, SECOND)
            self.leads(bootstrap, SECOND)

    async def test_a_place_that_fails_at_the_start(self, place: Place) -> None:
        await place.name(FIRST)
        await place.fail()
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            problem = await has_problem(bootstrap, True)
            assert "\n" not in problem
            assert len(problem) < 400
            assert bootstrap.peers() == ()
            assert bootstrap.leader is None
            await place.recover()
            await names(bootstrap, FIRST)
            await has_problem(bootstrap, False)

    async def test_a_place_that_fails_later_changes_nothing(self, place: Place) -> None:
        await place.name(FIRST)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST)
            await place.fail()
            await has_problem(bootstrap, True)
            await names(bootstrap, FIRST)
            self.leads(bootstrap, FIRST)
            await place.name(SECOND)
            await place.recover()
            await names(bootstrap, SECOND)
            await has_problem(bootstrap, False)


class SeveralPeersSuite:
    """Add it for places that can name more than one peer."""

    async def test_several_peers(self, place: Place) -> None:
        await place.name(FIRST, SECOND, THIRD)
        bootstrap = await place.bootstrap()
        async with running(bootstrap):
            await names(bootstrap, FIRST, SECOND, THIRD)
