"""Two nodes with one identity, as after a clone of a machine."""

from __future__ import annotations

import pytest
import trio
from conformance.router import eventually
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sim.network import SimHost, SimNetwork
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.members.duplicate import SHOWN
from spegel_consul.ring.net.libp2p import layers
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter

WITHIN = 60.0


async def _router(nursery: trio.Nursery, key: Ed25519PrivateKey) -> KadRouter:
    layers._noise_key.cache_clear()  # as in a process of its own
    router = KadRouter(Libp2pHost(key, bind=("127.0.0.1", 0)), registry=("127.0.0.1", 5000))
    await nursery.start(router.run)
    return router


async def test_members_that_know_both_tell_each_of_the_other(nursery: trio.Nursery) -> None:
    key = load_or_create(None)
    third = await _router(nursery, load_or_create(None))
    first, second = await _router(nursery, key), await _router(nursery, key)
    with capture_logs() as logs:
        for router in (first, second):
            assert await router.join([third.me]) == 1
        await first.join([third.me])
        await eventually(lambda: first.warning and second.warning, WITHIN)
    assert third.warning is None
    for each in (first, second):
        assert each.warning is not None
        assert "127.0.0.1" in each.warning
        assert "private.key" in each.warning
    assert [each["event"] for each in logs].count("ring_identity_duplicated") == 2


async def test_a_catalog_that_has_both_tells_each_of_the_other(nursery: trio.Nursery) -> None:
    key = load_or_create(None)
    first, second = await _router(nursery, key), await _router(nursery, key)
    assert await first.join([second.me]) == 0
    await eventually(lambda: first.warning and second.warning, WITHIN)


@pytest.mark.parametrize("identified", [True, False])
async def test_a_node_that_reaches_itself_is_no_duplicate(nursery: trio.Nursery, identified: bool) -> None:
    host = Libp2pHost(load_or_create(None), bind=("0.0.0.0", 0), advertise=("127.0.0.1", 0))
    router = KadRouter(host, registry=("127.0.0.1", 5000))
    await nursery.start(router.run)
    elsewhere = str(Address("127.0.0.2", host.address.port))
    dialled = 0
    real = host._layers.is_this_process

    def count(secured: object) -> bool:
        nonlocal dialled
        dialled += 1
        return real(secured)

    host._layers.is_this_process = count  # type: ignore[method-assign]
    await router.join([PeerInfo(router.me.id if identified else None, (elsewhere,))])
    await eventually(lambda: dialled == 2, WITHIN)
    assert router.warning is None


async def test_a_router_that_is_replaced_is_no_duplicate_of_its_successor(nursery: trio.Nursery) -> None:
    key = load_or_create(None)
    other = await _router(nursery, load_or_create(None))

    def make(before: KadRouter | None) -> KadRouter:
        made = Libp2pHost(key, bind=("127.0.0.1", 0))
        return KadRouter(made, registry=("127.0.0.1", 5000), successor_of=before)

    router = ReplaceableRouter(make)
    await nursery.start(router.run)
    old = router._current.router
    await router.join([other.me])
    assert await router.restart([other.me, old.me])
    assert await router.join([PeerInfo(None, old.me.addrs)]) == 0
    assert (router.warning, old.warning) == (None, None)


async def test_a_duplicate_is_a_warning_until_it_was_not_seen_for_long(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = SimNetwork()
    scope = trio.CancelScope()

    def router(host: SimHost) -> KadRouter:
        return KadRouter(host, registry=(host.address.host, 5000))

    first, second = (router(network.host(f"10.0.0.{number}", number=7)) for number in (1, 2))
    third = router(network.host("10.0.0.3"))

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await second.run(task_status=task_status)

    await nursery.start(run)
    for each in (first, third):
        await nursery.start(each.run)
    for each in (first, second):
        await each.join([third.me])
    for _ in range(12):  # as long as the other lives
        await trio.sleep(SHOWN / 2)
        assert first.warning is not None
    scope.cancel()
    await first.join([third.me])
    await trio.sleep(2 * SHOWN)
    assert first.warning is None
