# What every Router must do, whatever carries it.  A test module derives a class from RouterSuite and gives
# it a fixture `rig` that starts and kills nodes; nothing here knows how many milliseconds a network needs,
# so all that happens in the background is waited for with `eventually`.

"""The conformance suite of the ``Router`` protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import pytest
import trio

from spegel_consul.peers import PeerInfo, Provider, RingError
from spegel_consul.ring import Router
from spegel_consul.ring.dht.claim_reports import ClaimReport, What, Why
from spegel_consul.ring.members.member import SETTLED

WITHIN = 60.0
"""Seconds after which something hangs; what must be quicker is measured in virtual time."""


class Rig(Protocol):
    """Makes routers that can reach each other."""

    async def node(self) -> Router:
        """A router that runs and has joined nobody."""
        ...

    async def kill(self, router: Router) -> None:
        """Stop a router without a word to the others."""
        ...

    def registry(self, router: Router) -> tuple[str, int]:
        """Where the registry of the router's node is, as the router was told."""
        ...


async def eventually(check: Callable[[], object], within: float = WITHIN) -> None:
    """Return when ``check()`` is true; fail after ``within`` seconds."""
    with trio.fail_after(within):
        while not check():
            await trio.sleep(0.01)


async def find(router: Router, key: str, count: int = 3) -> list[Provider]:
    """All that one lookup yields."""
    with trio.fail_after(WITHIN):
        with router.lookup(key, count=count) as providers:
            return [provider async for provider in providers]


async def eventually_finds(router: Router, key: str, expected: set[str | None], within: float = WITHIN) -> None:
    """Return when a lookup yields exactly the peers ``expected``."""
    found: set[str | None] = set()
    try:
        with trio.fail_after(within):
            while found != expected or not expected:
                found = {provider.peer_id for provider in await find(router, key)}
                if found == expected:
                    return
                await trio.sleep(0.02)
    except trio.TooSlowError:
        pytest.fail(f"{key} is found at {found}, expected {expected}")


async def ring_of(rig: Rig, size: int) -> list[Router]:
    """Routers that all know each other, joined through the first."""
    routers = [await rig.node() for _ in range(size)]
    for router in routers[1:]:
        assert await router.join([routers[0].me]) == 1
    await eventually(lambda: all(len(router.members()) == size - 1 for router in routers))
    return routers


class RouterSuite:
    """Derive from it and define the fixture ``rig``."""

    async def test_a_node_alone_finds_nothing(self, rig: Rig) -> None:
        router = await rig.node()
        assert router.members() == ()
        assert router.me.id
        assert router.me.addrs
        await router.announce(["mine"])
        assert await find(router, "mine") == []
        assert await find(router, "nobody has this") == []

    async def test_joining_makes_members_of_both(self, rig: Rig) -> None:
        first, second = await rig.node(), await rig.node()
        assert await second.join([first.me]) == 1
        await eventually(lambda: first.members() and second.members())
        assert [member.id for member in first.members()] == [second.me.id]
        assert [(member.id, member.addrs) for member in second.members()] == [(first.me.id, first.me.addrs)]

    async def test_an_id_is_not_needed_to_join(self, rig: Rig) -> None:
        first, second = await rig.node(), await rig.node()
        assert await second.join([PeerInfo(None, first.me.addrs)]) == 1
        await eventually(lambda: [member.id for member in second.members()] == [first.me.id])

    async def test_a_wrong_id_gives_way_to_the_real_one(self, rig: Rig) -> None:
        first, second, third = [await rig.node() for _ in range(3)]
        await rig.kill(third)
        assert await second.join([PeerInfo(third.me.id, first.me.addrs)]) == 1
        await eventually(lambda: [member.id for member in second.members()] == [first.me.id])

    async def test_joining_oneself_is_harmless(self, rig: Rig) -> None:
        first, second = await rig.node(), await rig.node()
        assert await first.join([first.me]) == 0
        assert await first.join([PeerInfo(None, first.me.addrs)]) == 0
        assert await first.join([first.me, second.me]) == 1
        await eventually(lambda: [member.id for member in first.members()] == [second.me.id])

    async def test_whoever_cannot_be_reached_does_not_count(self, rig: Rig) -> None:
        first, second, gone = [await rig.node() for _ in range(3)]
        await rig.kill(gone)
        with trio.fail_after(WITHIN):
            assert await first.join([]) == 0
            assert await first.join([gone.me]) == 0
            assert await first.join([PeerInfo(None, ("/ip4/nonsense", "", "/unix/x"))]) == 0
            assert await first.join([PeerInfo("not an id!", ())]) == 0
            assert await first.join([gone.me, second.me]) == 1

    async def test_joining_again_drops_nobody(self, rig: Rig) -> None:
        routers = await ring_of(rig, 3)
        assert await routers[1].join([routers[2].me]) == 1
        assert await routers[1].join([]) == 0
        assert len(routers[1].members()) == 2

    async def test_what_was_announced_before_joining_is_found(self, rig: Rig) -> None:
        first, second = await rig.node(), await rig.node()
        await first.announce(["early"])
        await second.join([first.me])
        await eventually_finds(second, "early", {first.me.id})
        provider = (await find(second, "early"))[0]
        assert provider.registry == rig.registry(first)

    async def test_a_fresh_member_finds_at_once_what_is_announced(self, rig: Rig) -> None:
        routers = await ring_of(rig, 2)
        await routers[0].announce(["old"])
        await eventually_finds(routers[1], "old", {routers[0].me.id})
        fresh = await rig.node()
        await fresh.announce(["new"])
        await fresh.join([routers[1].me])
        await eventually_finds(fresh, "old", {routers[0].me.id}, within=1.0)
        await eventually_finds(routers[0], "new", {fresh.me.id}, within=1.0)

    async def test_every_key_is_found_from_every_node(self, rig: Rig) -> None:
        routers = await ring_of(rig, 5)
        owner = {f"registry.example/image:{number}": routers[number % 5] for number in range(20)}
        for key, router in owner.items():
            await router.announce([key])
        for router in routers:
            for key, provider in owner.items():
                if provider is not router:
                    await eventually_finds(router, key, {provider.me.id})
                    assert [each.registry for each in await find(router, key)] == [rig.registry(provider)]

    async def test_a_node_does_not_find_itself(self, rig: Rig) -> None:
        routers = await ring_of(rig, 3)
        for router in routers:
            await router.announce(["shared"])
        for router in routers:
            await eventually_finds(router, "shared", {other.me.id for other in routers if other is not router})

    async def test_no_more_than_count_and_each_once(self, rig: Rig) -> None:
        routers = await ring_of(rig, 4)
        for router in routers[1:]:
            await router.announce(["popular"])
        await eventually_finds(routers[0], "popular", {router.me.id for router in routers[1:]})
        for count in (1, 2, 3):
            found: list[str | None] = []
            with trio.fail_after(WITHIN):
                while len(found) != count:  # more are yielded until all holders have the same records
                    found = [provider.peer_id for provider in await find(routers[0], "popular", count)]
                    assert len(found) == len(set(found)) >= count

    async def test_announcing_twice_and_withdrawing_what_is_not_there_is_harmless(self, rig: Rig) -> None:
        first, second = await ring_of(rig, 2)
        await first.announce(["a", "b"])
        await first.announce(["a"], ["never there"])
        await first.announce([], ["b"])
        await first.announce(["b"])
        for key in ("a", "b"):
            await eventually_finds(second, key, {first.me.id})

    async def test_who_leaves_is_not_named_any_more_though_it_is_still_there(self, rig: Rig) -> None:
        first, second, third = [await rig.node() for _ in range(3)]
        for router in (second, third):
            assert await router.join([first.me]) == 1
        await eventually(lambda: all(len(router.members()) == 2 for router in (first, second, third)))
        await first.announce(["key", "other"])
        await second.announce(["key"])
        await eventually_finds(third, "key", {first.me.id, second.me.id})
        await eventually_finds(third, "other", {first.me.id})
        with trio.fail_after(5):
            await first.leave()
        await first.announce(["later"])
        await eventually_finds(third, "key", {second.me.id})
        assert await find(third, "other") == await find(second, "other") == await find(second, "later") == []
        await eventually_finds(first, "key", {second.me.id})

    async def test_a_dead_provider_is_forgotten(self, rig: Rig) -> None:
        routers = await ring_of(rig, 4)
        await routers[1].announce(["layer"])
        await routers[2].announce(["layer"])
        await eventually_finds(routers[0], "layer", {routers[1].me.id, routers[2].me.id})
        await rig.kill(routers[1])
        for survivor in (routers[0], routers[3]):
            await eventually_finds(survivor, "layer", {routers[2].me.id}, within=2.0)
            await eventually(lambda router=survivor: len(router.members()) == 2)

    async def test_two_rings_become_one_by_one_join(self, rig: Rig) -> None:
        left, right = await ring_of(rig, 3), await ring_of(rig, 2)
        await left[1].announce(["from the left"])
        await right[1].announce(["from the right"])
        assert await left[2].join([right[0].me]) == 1
        await eventually(lambda: all(len(router.members()) == 4 for router in left + right))
        for router in right:
            await eventually_finds(router, "from the left", {left[1].me.id})
        for router in left:
            await eventually_finds(router, "from the right", {right[1].me.id})

    async def test_joining_in_a_chain_acquaints_all(self, rig: Rig) -> None:
        routers = [await rig.node() for _ in range(4)]
        for earlier, later in itertools.pairwise(routers):
            assert await later.join([earlier.me]) == 1
        await eventually(lambda: all(len(router.members()) == 3 for router in routers))

    async def test_a_node_alone_claims(self, rig: Rig) -> None:
        router = await rig.node()
        assert (await router.claim("sha256:alone", ClaimReport(serves=True, working=True))).what is What.CLAIM
        assert (await router.claim("sha256:other", ClaimReport())).what is What.ALONE

    async def test_one_claims_and_the_others_follow_in_a_chain(self, rig: Rig) -> None:
        routers = await ring_of(rig, 4)
        report = ClaimReport(serves=True, working=True)
        for group in ("sha256:one", "sha256:two", "sha256:three", "sha256:four"):
            for earlier, later in [(None, routers[0]), *itertools.pairwise(routers)]:
                with trio.fail_after(WITHIN):
                    verdict = await later.claim(group, report)
                assert verdict.again == (1.0 if earlier in (None, routers[0]) else 2.0)
                if earlier is None:
                    assert verdict.what is What.CLAIM
                else:
                    assert verdict.what is What.FOLLOW
                    source = verdict.sources[0]
                    assert (source.peer_id, source.registry) == (earlier.me.id, rig.registry(earlier))
                    assert later.me.id not in {each.peer_id for each in verdict.sources}

    async def test_a_lookup_tells_of_a_group_that_nobody_is_at_work_on(self, rig: Rig) -> None:
        routers = await ring_of(rig, 3)
        await trio.sleep(SETTLED)
        with trio.fail_after(10 * WITHIN):
            # each claims something that another keeps, because a node that claims nothing does not care for keepers
            for number in range(24):
                for router in routers:
                    await router.claim(f"sha256:{number}", ClaimReport())
            for group in (f"sha256:group {number}" for number in range(3)):
                for router in routers:
                    while not router.is_vacant(group):  # until the members have been in contact for some seconds
                        assert await find(router, group) == []
                        await trio.sleep(0.5)
                await routers[0].claim(group, ClaimReport(serves=True, working=True))
                await trio.sleep(1.0)
                for router in routers:
                    assert await find(router, group) == []
                    assert not router.is_vacant(group)

    async def test_a_follower_replaces_the_source_that_it_lost(self, rig: Rig) -> None:
        routers = await ring_of(rig, 3)
        report = ClaimReport(serves=True, working=True)
        for router in routers:
            await router.claim("sha256:one", report)
        lost = replace(report, lost=routers[0].me.id or "", why=Why.CUT, have=1)
        assert (await routers[1].claim("sha256:one", lost)).what is What.CLAIM
        assert (await routers[2].claim("sha256:one", report)).sources[0].peer_id == routers[1].me.id

    async def test_claims_outlive_any_one_node(self, rig: Rig) -> None:
        routers = await ring_of(rig, 4)
        report = ClaimReport(serves=True, working=True)
        for dead in (None, routers[3], routers[2]):
            if dead is not None:
                await rig.kill(dead)
            for group in map(str, range(8)):
                with trio.fail_after(WITHIN):
                    assert (await routers[0].claim(group, report)).what is What.CLAIM
                    verdict = await routers[1].claim(group, report)
                assert [source.peer_id for source in verdict.sources] == [routers[0].me.id]
            if dead is not None:  # two that die in the same moment are more than a claim survives
                for router in routers[:2]:
                    await eventually(
                        lambda router=router, dead=dead: dead.me.id not in {peer.id for peer in router.members()}
                    )

    async def test_text_that_is_no_peer_id_is_refused_at_the_door(self, rig: Rig) -> None:
        router = await rig.node()
        with pytest.raises(RingError, match="base58"):
            await router.claim("sha256:alone", ClaimReport(lost="0OIl", why=Why.CUT))

    async def test_what_the_caller_raises_comes_out_as_it_is(self, rig: Rig) -> None:
        first, second = await ring_of(rig, 2)
        await second.announce(["key"])
        with pytest.raises(KeyError, match="of the caller"):
            with first.lookup("key"):
                raise KeyError("of the caller")

    async def test_lookups_that_are_left_early_do_no_harm(self, rig: Rig) -> None:
        routers = await ring_of(rig, 3)
        await routers[1].announce(["key"])
        await eventually_finds(routers[0], "key", {routers[1].me.id})

        async def check_client(pause: float) -> None:
            with trio.move_on_after(pause):
                with routers[0].lookup("key") as providers:
                    async for _ in providers:
                        break
                with routers[0].lookup("nobody has this") as providers:
                    async for _ in providers:
                        pass

        for number in range(10):
            async with trio.open_nursery() as nursery:
                for step in range(8):
                    nursery.start_soon(check_client, (number + step) * 0.0007)
        assert len(routers[0].members()) == 2
        for router in (routers[0], routers[2]):
            assert [provider.peer_id for provider in await find(router, "key")] == [routers[1].me.id]

    async def test_a_lookup_ends_with_its_router(self, rig: Rig) -> None:
        first, second = await ring_of(rig, 2)
        await second.announce(["key"])
        await eventually_finds(first, "key", {second.me.id})
        with trio.fail_after(WITHIN):
            with first.lookup("nobody has this") as providers:
                await rig.kill(first)
                assert [provider async for provider in providers] == []

    async def test_a_router_that_does_not_run_says_so(self, rig: Rig) -> None:
        router = await rig.node()
        await rig.kill(router)
        with pytest.raises(RingError, match="not running"):
            with router.lookup("key"):
                pass
        with pytest.raises(RingError, match="not running"):
            await router.claim("sha256:one", ClaimReport(serves=True))
        assert await router.join([PeerInfo(None, ("/ip4/127.0.0.1/tcp/1",))]) == 0
