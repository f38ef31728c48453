"""A member comes back with its registry at another port: same router port, same key."""

from __future__ import annotations

import random

import trio
from conformance.router import eventually
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.members.table import Members
from tests.ring.sim_rig import SimRig, raw_id, rig

__all__ = ["rig"]

ROUTER, OTHER = Address("10.0.0.1", 5001), Address("10.0.0.2", 5001)
REGISTRY = Address("10.0.0.1", 5000, http=True)


def table() -> Members:
    return Members(b"me", rng=random.Random(7))


def test_a_registry_that_moved_while_its_member_was_dead_is_learnt_from_others() -> None:
    members, moved = table(), Address("10.0.0.1", 5050, http=True)
    members.learn(Contact(b"a", (ROUTER,), REGISTRY), 0, direct=True)
    members.failed(b"a", 10)
    probe_at = members.next_probe()
    members.learn(Contact(b"a", (ROUTER,), moved), 12, age=5, source=b"s")
    assert members.get(b"a").registry == REGISTRY, "that was before it failed"
    members.learn(Contact(b"a", (ROUTER,), moved), 12, age=1, source=b"s")
    members.learn(Contact(b"a", (ROUTER,), REGISTRY), 12, age=5, source=b"late")
    members.learn(Contact(b"a", (ROUTER,)), 12, age=1, source=b"s")
    members.answered(b"a", 13)
    member = members.get(b"a")
    assert member.registry == moved
    assert moved.encode() in member.wire.addresses
    assert probe_at < 11
    # also its secondary address
    second = Address("fd00::1", 5050, http=True)
    members.failed(b"a", 20)
    members.learn(Contact(b"a", (ROUTER,), moved, second), 21, source=b"s")
    assert member.secondary == second


def test_a_living_member_whose_registry_others_dispute_is_asked_once_after_a_loss() -> None:
    members = table()
    moved = Contact(b"a", (ROUTER,), Address("10.0.0.1", 5050, http=True))
    assert not members.disputes(moved), "unknown"
    members.learn(Contact(b"a", (ROUTER,), REGISTRY), 0, direct=True)
    assert not members.disputes(moved), "it has said so itself"
    members.suspect(b"a", 10)
    assert not members.disputes(Contact(b"a", (ROUTER,), REGISTRY))
    assert not members.disputes(Contact(b"a", (OTHER,)))
    members.learn(moved, 11, source=b"s")
    assert [members.disputes(moved) for _ in range(3)] == [True, False, False]
    assert members.get(b"a").registry == REGISTRY, "a report of others changes nothing"
    members.failed(b"a", 20)
    assert not members.disputes(moved), "dead"
    members.answered(b"a", 21)
    assert members.disputes(moved)
    members.failed(b"a", 30)
    members.answered(b"a", 31)
    members.learn(moved, 32, direct=True)
    assert not members.disputes(Contact(b"a", (ROUTER,), REGISTRY))


async def test_a_member_is_asked_for_its_registry_when_others_dispute_it(
    rig: SimRig, autojump_clock: MockClock
) -> None:
    first, second, liar = await rig.ring(3)
    await trio.sleep(5)
    member = first._members.get(raw_id(second))
    assert member is not None
    true = member.registry
    assert true is not None
    former = Address(true.host, true.port + 1000, http=True)
    membership = first._membership

    def named_at(registry: Address) -> None:
        membership.learn(Contact(member.id, member.routers, registry), source=raw_id(liar))

    # the table has the registry of the member's former process, and its connection was lost since
    membership.learn(Contact(member.id, member.routers, former), direct=True)
    membership.on_disconnect(member.id)
    named_at(true)
    assert member.registry == former, "others are not believed"
    await eventually(lambda: member.registry == true, within=2)
    # nor is a lie, and the member's own word stands
    membership.on_disconnect(member.id)
    named_at(former)
    await trio.sleep(2)
    assert member.registry == true
