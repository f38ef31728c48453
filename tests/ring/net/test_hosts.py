"""The conformance suite of ``Host``, on libp2p and on the simulated network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import trio
from conformance.host import HostSuite
from conformance.host_limits import HostLimitsSuite
from conformance.host_rig import ECHO, WITHIN, Server, pair, server
from conformance.router import eventually
from sim.network import SimHost, SimNetwork
from trio.testing import MockClock

from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.ring.net.host import Handler, Host
from spegel_consul.ring.net.libp2p import stream as muxed_stream
from spegel_consul.ring.net.libp2p.stream import MuxedStream
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.net.shared_result import Result
from tests.sim import stream as simulated_stream

__all__ = ["pair", "server"]


class Hosts:
    """Hosts that ``make`` makes; killing one ends its task, and with it its sockets."""

    def __init__(self, nursery: trio.Nursery, make: Callable[[], Host]) -> None:
        self._nursery, self._make = nursery, make
        self._lives: dict[bytes, tuple[trio.CancelScope, trio.Event]] = {}

    async def host(self, handlers: Mapping[str, Handler]) -> Host:
        host, scope, ended = self._make(), trio.CancelScope(), trio.Event()
        for protocol, handler in handlers.items():
            host.serve(protocol, handler)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await host.run(task_status=task_status)
            ended.set()

        await self._nursery.start(run)
        self._lives[host.id] = scope, ended
        return host

    async def kill(self, host: Host) -> None:
        scope, ended = self._lives[host.id]
        scope.cancel()
        await ended.wait()


class TestLibp2p(HostSuite, HostLimitsSuite):
    @pytest.fixture
    def rig(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Hosts:
        monkeypatch.setattr(muxed_stream, "FIN_TIMEOUT", 0.5)
        return Hosts(nursery, lambda: Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)))


class TestSimulated(HostSuite, HostLimitsSuite):
    @pytest.fixture
    def rig(self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Hosts:
        monkeypatch.setattr(simulated_stream, "FIN_TIMEOUT", 0.5)
        return Hosts(nursery, SimNetwork().host)


async def test_deadlines_at_the_very_moment_at_which_a_stream_comes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The simulated network says when it comes, and Trio wakes both in one pass, in either order."""
    network, server, got = SimNetwork(), Server(), 0
    hosts = Hosts(nursery, network.host)
    here, there = await hosts.host({}), await hosts.host(server.handlers)
    assert isinstance(here, SimHost)
    await here.dial(there.address.host, there.address.port)
    for number in range(400):
        with trio.move_on_after(2 * network.latency + (number % 3 - 1) * network.latency / 2):
            stream = await here.open(there.id, (), ECHO)
            got += 1
            stream.reset()
        await trio.sleep(1)
        assert server.live == 0
    assert server.opened == server.ended == len(server.seen) == 400
    assert server.seen == ["reset"] * 400
    assert 100 < got < 400


async def test_no_stream_of_libp2p_is_lost_between_the_one_who_brings_it_and_the_one_who_left(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opener's deadline passes in the very step in which its stream is handed over, before it or after it."""
    scope, early = trio.CancelScope(), True
    hand_over = Result.set

    def at_that_moment(result: Result[object], value: object) -> None:
        if isinstance(value, MuxedStream) and early:
            scope.cancel()
        hand_over(result, value)
        if isinstance(value, MuxedStream):
            scope.cancel()

    monkeypatch.setattr(Result, "set", at_that_moment)
    server, got = Server(), 0
    hosts = Hosts(nursery, lambda: Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)))
    here, there = await hosts.host({}), await hosts.host(server.handlers)
    await here.dial(there.address.host, there.address.port)
    for number in range(200):
        scope, early = trio.CancelScope(), number % 2 == 0
        with scope:
            stream = await here.open(there.id, (), ECHO)
            got += 1
            stream.reset()
        if number % 20 == 0:
            await eventually(lambda: not server.live, WITHIN)
    assert got == 100
    await eventually(lambda: server.ended == 200, WITHIN)
    assert server.seen == ["reset"] * 200


async def test_who_dialled_a_port_of_both_address_families_is_known_by_the_address_that_is_dialled(
    nursery: trio.Nursery,
) -> None:
    sock = listen(ListenAddress("", 0), "--router-addr")
    there = Libp2pHost(load_or_create(None), bind=sock, advertise=("127.0.0.1", sock.getsockname()[1]))
    hosts = Hosts(nursery, lambda: there)
    await hosts.host({})
    here = await Hosts(nursery, lambda: Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))).host({})
    await here.dial(there.address.host, there.address.port)
    await eventually(lambda: there._dialler.has_heard_from("127.0.0.1"))
