"""The peers that the Consul bootstraps name, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.service_definitions import ROUTER, spegel_services
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join import Bootstrap
from spegel_consul.join.sources.elected_leader import ElectedBootstrap
from spegel_consul.peers import PeerInfo
from tests.consul.fakeconsul import FakeConsul


def record(name: str, address: str = "10.0.0.1") -> LeaderRecord:
    return LeaderRecord(name, (f"/ip4/{address}/tcp/5001/p2p/{name}",), node=name)


async def until(condition: Callable[[], object], limit: float = 60) -> None:
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.05)


@pytest.fixture
async def consul() -> AsyncIterator[FakeConsul]:
    async with trio.open_nursery() as nursery:
        yield FakeConsul(nursery)
        nursery.cancel_scope.cancel()


async def start(
    nursery: trio.Nursery, consul: FakeConsul, me: LeaderRecord, *, catalog: bool = False
) -> tuple[Candidate, ElectedBootstrap]:
    client = consul.client(me.node)
    candidate = Candidate(ConsulLock(client), me, rng=random.Random(me.node))
    watch = CatalogWatch(client, ROUTER) if catalog else None
    bootstrap = ElectedBootstrap(candidate, watch)
    await nursery.start(candidate.run)
    if watch:
        await nursery.start(watch.run)
    await nursery.start(bootstrap.run)
    return candidate, bootstrap


async def register(consul: FakeConsul, *names: str) -> None:
    for number, name in enumerate(names):
        services = spegel_services(
            node=name,
            address=f"10.0.1.{number}",
            peer_id=name,
            router_addr=f"/ip4/10.0.1.{number}/tcp/5001/p2p/{name}",
            version="1",
            registry_port=5000,
            router_port=5001,
            metrics_port=9090,
        )
        await consul.client(name).register_service(services.always[1].to_json())


async def test_names_the_leader_and_reacts_to_identity_only(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    leader, _ = await start(nursery, consul, record("first"))
    await until(lambda: leader.view.state is State.LEADER)
    _, follower = await start(nursery, consul, record("second"))
    bootstrap: Bootstrap = follower
    await bootstrap.changed(())
    peers = bootstrap.peers()
    assert peers == (PeerInfo("first", ("/ip4/10.0.0.1/tcp/5001",)),)
    # another session of the same leader is no change
    consul.write(record("first").to_json(session="new", since="later"))
    with trio.move_on_after(30) as scope:
        await bootstrap.changed(peers)
    assert scope.cancelled_caught
    # the same leader elsewhere is
    consul.links["first"] = "cut"  # so that it can't repair the value
    with trio.fail_after(5):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(bootstrap.changed, peers)
            await trio.sleep(0.1)
            consul.write(record("first", "10.9.9.9").to_json(session="new", since="later"))
    assert bootstrap.peers() == (PeerInfo("first", ("/ip4/10.9.9.9/tcp/5001",)),)


async def test_keeps_the_leader_while_consul_is_away_or_the_value_is_junk(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    leader, _ = await start(nursery, consul, record("first"))
    await until(lambda: leader.view.state is State.LEADER)
    follower, bootstrap = await start(nursery, consul, record("second"))
    await bootstrap.changed(())
    peers = bootstrap.peers()
    consul.links["first"] = "cut"  # so that it can't repair the value
    consul.write(b"junk")
    await until(lambda: follower.view.leader is None)
    assert bootstrap.peers() == peers
    consul.links["second"] = "no-leader"
    await until(lambda: follower.view.state is State.SUSPENDED, 120)
    assert bootstrap.peers() == peers
    assert "No cluster leader" in bootstrap.problem


async def test_offers_the_catalog_while_there_is_no_leader(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    await register(consul, "me", "a", "b", "c", "d", "e")
    consul.links["me"] = "read-only"
    _, bootstrap = await start(nursery, consul, record("me"), catalog=True)
    await bootstrap.changed(())
    peers = bootstrap.peers()
    assert len(peers) == 3
    assert {peer.id for peer in peers} < set("abcde")
    assert all(addr.endswith("/tcp/5001") for peer in peers for addr in peer.addrs)
    # a member that was not chosen goes: no change
    gone = next(name for name in "abcde" if name not in {peer.id for peer in peers})
    await consul.client("x").deregister_service(f"spegel-router:{gone}")
    await trio.sleep(5)
    assert bootstrap.peers() == peers


async def test_offers_the_catalog_beside_itself_as_leader(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    await register(consul, "me", "a")
    candidate, bootstrap = await start(nursery, consul, record("me"), catalog=True)
    await until(lambda: candidate.view.state is State.LEADER)
    await until(lambda: len(bootstrap.peers()) == 2)
    assert [peer.id for peer in bootstrap.peers()] == ["me", "a"]
    assert bootstrap.problem is None


async def test_the_catalog_is_left_alone_when_another_leads(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    leader, _ = await start(nursery, consul, record("first"))
    await until(lambda: leader.view.state is State.LEADER)
    await register(consul, "a", "b")
    _, bootstrap = await start(nursery, consul, record("me"), catalog=True)
    await trio.sleep(5)
    assert [peer.id for peer in bootstrap.peers()] == ["first"]


async def test_members_that_another_program_registered_have_no_id(
    autojump_clock: trio.testing.MockClock, consul: FakeConsul, nursery: trio.Nursery
) -> None:
    client = consul.client("x")
    for number, address in enumerate(["10.0.0.1", "10.0.1.1", "fd00::1", ""]):
        await client.register_service(
            {"ID": f"_nomad-task-{number}", "Name": "spegel-router", "Address": address, "Port": 5001}
        )
    consul.links["me"] = "read-only"
    _, bootstrap = await start(nursery, consul, record("me"), catalog=True)
    await bootstrap.changed(())
    assert {peer.addrs for peer in bootstrap.peers()} == {("/ip4/10.0.1.1/tcp/5001",), ("/ip6/fd00::1/tcp/5001",)}
    assert {peer.id for peer in bootstrap.peers()} == {None}
