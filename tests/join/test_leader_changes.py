"""Leaders change, and pulls go on.

A ring over real connections has a bootstrap that names another leader again and again, while all nodes look up the
content of all others.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
import trio
from conformance.router import eventually
from join.keeping import Named

from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter

NODES, CHANGES, LOOKUPS = 5, 10, 1000
MIRROR_PATIENCE = 10.0
"""Seconds; far more than --mirror-resolve-timeout, since five nodes share a process, and that a machine."""


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for sock in made:
        sock.close()


def node(number: int, sockets: list[socket.socket]) -> ReplaceableRouter:
    key, sock = load_or_create(None), socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    sockets.append(sock)
    port = sock.getsockname()[1]

    def make(before: KadRouter | None) -> KadRouter:
        host = Libp2pHost(key, bind=sock.dup(), advertise=("127.0.0.1", port))
        return KadRouter(host, registry=("127.0.0.1", 5000 + number), successor_of=before)

    return ReplaceableRouter(make)


@pytest.mark.parametrize("policy", [OnLeaderChange.REJOIN, OnLeaderChange.RESTART])
async def test_no_lookup_fails_while_the_leader_changes_ten_times(
    nursery: trio.Nursery, sockets: list[socket.socket], policy: OnLeaderChange
) -> None:
    routers = [node(number, sockets) for number in range(NODES)]
    bootstraps = [Named(routers[0].me) for _ in routers]
    keepers = []
    for router, bootstrap in zip(routers, bootstraps, strict=True):
        await nursery.start(router.run)
        keeper = RingKeeper(router, bootstrap, on_leader_change=policy, debounce=0.05, restart_every=0.3)
        await nursery.start(keeper.run)
        keepers.append(keeper)
    await eventually(lambda: all(len(router.members()) == NODES - 1 for router in routers))
    for number, router in enumerate(routers):
        await router.announce([f"of {number}"])
    await eventually(lambda: not any(router.unannounced for router in routers))

    rng = random.Random(7)
    failed: list[str] = []
    done = 0

    async def look_up() -> None:
        nonlocal done
        asker, owner = rng.sample(range(NODES), 2)
        with trio.move_on_after(MIRROR_PATIENCE):
            with routers[asker].lookup(f"of {owner}", count=1) as providers:
                async for provider in providers:
                    if provider.peer_id == routers[owner].me.id:
                        done += 1
                        return
        failed.append(f"{asker} did not find {owner} at {trio.current_time():.2f}")

    async with trio.open_nursery() as lookups:
        for number in range(LOOKUPS):
            if number % (LOOKUPS // CHANGES) == 50:
                leader = routers[(number // (LOOKUPS // CHANGES) + 1) % NODES].me
                for bootstrap in bootstraps:
                    bootstrap.name(leader)
            lookups.start_soon(look_up)
            await trio.sleep(0.004)
    assert failed == []
    assert done == LOOKUPS
    if policy is OnLeaderChange.RESTART:
        assert sum(keeper.restarts for keeper in keepers) >= NODES
    else:
        assert sum(keeper.restarts for keeper in keepers) == 0
    await eventually(lambda: all(len(router.members()) == NODES - 1 for router in routers))


async def test_a_generation_that_gets_nowhere_is_given_up(nursery: trio.Nursery, sockets: list[socket.socket]) -> None:
    first, second = node(0, sockets), node(1, sockets)
    for router in (first, second):
        await nursery.start(router.run)
    await first.join([second.me])
    before = first._current
    first._make = lambda before: KadRouter(  # type: ignore[assignment]
        Libp2pHost(load_or_create(None), bind=("127.0.0.1", int(second.me.addrs[0].rsplit("/", 1)[1]))),
        registry=("127.0.0.1", 5000),
    )
    assert not await first.restart([second.me])
    assert first._current is before
    assert len(first.members()) == 1
