import itertools
import re
import socket

import pytest
import trio
from conformance.router import Rig, RouterSuite, eventually, eventually_finds, find, ring_of

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import PeerInfo, RingError
from spegel_consul.ring import Router
from spegel_consul.ring.dht.protocol_ids import WITHDRAW
from spegel_consul.ring.net.host import Stream, Unreachable
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter


class Libp2pRig:
    """Routers on 127.0.0.1; killing one closes its sockets, as the kernel does for a process."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ports = itertools.count(5000)
        self._registries: dict[str | None, tuple[str, int]] = {}
        self._killed: dict[str | None, tuple[trio.CancelScope, trio.Event]] = {}

    async def node(self) -> Router:
        registry = ("127.0.0.1", next(self._ports))
        router = KadRouter(Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)), registry=registry)
        scope, ended = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await router.run(task_status=task_status)
            ended.set()

        await self._nursery.start(run)
        self._registries[router.me.id], self._killed[router.me.id] = registry, (scope, ended)
        return router

    async def kill(self, router: Router) -> None:
        scope, ended = self._killed[router.me.id]
        scope.cancel()
        await ended.wait()

    def registry(self, router: Router) -> tuple[str, int]:
        return self._registries[router.me.id]


@pytest.fixture
async def rig(nursery: trio.Nursery) -> Libp2pRig:
    return Libp2pRig(nursery)


class TestKadRouterOnLibp2p(RouterSuite):
    pass


async def test_a_peer_that_accepts_and_never_answers_costs_one_bounded_join(rig: Rig) -> None:
    first, second = await rig.node(), await rig.node()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    hung = type(first.me)(None, (f"/ip4/127.0.0.1/tcp/{port}",))
    with trio.fail_after(60):
        assert await first.join([hung, second.me]) == 1
    assert len(first.members()) == 1
    for listener in listeners:
        await listener.aclose()


async def test_a_port_in_use_is_told_in_one_line(nursery: trio.Nursery) -> None:
    first = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))
    await nursery.start(KadRouter(first, registry=("127.0.0.1", 1)).run)
    taken = first.address.port
    second = KadRouter(Libp2pHost(load_or_create(None), bind=("127.0.0.1", taken)), registry=("127.0.0.1", 1))
    with pytest.raises(RingError, match=re.escape(f"127.0.0.1:{taken}")) as caught:
        await nursery.start(second.run)
    assert "\n" not in str(caught.value)


async def test_a_wildcard_is_bound_but_not_advertised(nursery: trio.Nursery) -> None:
    host = Libp2pHost(load_or_create(None), bind=("0.0.0.0", 0), advertise=("127.0.0.1", 0))
    await nursery.start(KadRouter(host, registry=("127.0.0.1", 1)).run)
    assert host.address.port
    await (await trio.open_tcp_stream("127.0.0.1", host.address.port)).aclose()
    with pytest.raises(RingError, match=r"can't advertise 0\.0\.0\.0"):
        KadRouter(Libp2pHost(load_or_create(None), bind=("0.0.0.0", 0)), registry=("127.0.0.1", 1))
    with pytest.raises(RingError, match="can't advertise node-1"):
        KadRouter(Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)), registry=("node-1", 1))


async def test_a_socket_that_is_bound_already_is_used(nursery: trio.Nursery) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        host = Libp2pHost(load_or_create(None), bind=sock)
        await nursery.start(host.run)
        assert host.address.port == port
        sock.detach()


async def test_a_node_that_comes_back_under_a_new_id_is_found_again(rig: Rig) -> None:
    routers = await ring_of(rig, 3)
    await rig.kill(routers[2])
    await eventually(lambda: len(routers[0].members()) == 1)
    again = await rig.node()
    await again.announce(["after the restart"])
    assert await again.join([routers[0].me]) == 1
    await eventually_finds(routers[1], "after the restart", {again.me.id})
    assert await find(routers[1], "before the restart") == []


async def test_a_withdrawal_that_is_refused_is_not_done(rig: Rig) -> None:
    first, second = await ring_of(rig, 2)
    assert isinstance(first, KadRouter)
    assert isinstance(second, KadRouter)
    handlers = second._host._handlers  # type: ignore[attr-defined]
    serve, refused = handlers[WITHDRAW], 0

    async def refuse(stream: Stream) -> None:
        nonlocal refused
        refused += 1
        if refused == 3:
            handlers[WITHDRAW] = serve
        while await stream.receive():
            pass
        raise RingError("not now")

    await first.announce(["key"])
    await eventually(lambda: second.records == 1)
    handlers[WITHDRAW] = refuse
    await first.announce([], ["key"])
    await eventually(lambda: second.records == 0, within=60)
    assert refused == 3


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example", "h\u00f6st_1", "\ud800", "a\0b"])
async def test_a_name_that_nobody_can_resolve_costs_only_itself(rig: Rig, name: str) -> None:
    first, second = await rig.node(), await rig.node()
    bad = PeerInfo(name, (f"/dns/{name}/tcp/5001", name))
    assert await first.join([bad, PeerInfo(None, bad.addrs), second.me]) == 1
    host: Libp2pHost = first._host  # type: ignore[attr-defined]
    with pytest.raises(Unreachable):  # whoever asks, not only addresses that parse() has let through
        await host.dial(name, 5001)
    with pytest.raises(Unreachable):
        await host.open(b"somebody", (Address(name, 5001),), "/x")
    assert [member.id for member in first.members()] == [second.me.id]


async def test_a_remembered_peer_must_be_who_it_was(rig: Rig) -> None:
    first, stranger, friend = await rig.node(), await rig.node(), await rig.node()
    reused = PeerInfo(friend.me.id, stranger.me.addrs, proven=True)
    assert await first.join([reused]) == 0
    assert (first.members(), stranger.members()) == ((), ())
    assert await first.join([PeerInfo(None, stranger.me.addrs, proven=True)]) == 0
    assert await first.join([PeerInfo(friend.me.id, friend.me.addrs, proven=True)]) == 1
    await eventually(lambda: [member.id for member in first.members()] == [friend.me.id])
    assert await first.join([PeerInfo(friend.me.id, stranger.me.addrs)]) == 1, "connected already"
