"""A host at the limit of open files refuses dials at once, and says so once. With few files it keeps to its share."""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack, suppress

import pytest
import trio
from lab.no_files import no_files
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.peers import RingError
from spegel_consul.ring.net import dialler, libp2p_host
from spegel_consul.ring.net.dialler import Dialler
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.net.ring_files import RING_FILES, RingFiles
from spegel_consul.sidecar.open_files import shares

DIALS = 50


async def test_dials_without_files_are_one_event(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """No more than one, though the shortage lasts for seconds and dials go on."""
    caplog.set_level(logging.INFO)
    here, there = (Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)) for _ in range(2))
    for host in (here, there):
        await nursery.start(host.run)
    await trio.testing.wait_all_tasks_blocked()
    refused, clients = 0, [socket.socket() for _ in range(DIALS)]
    with capture_logs() as said, no_files():
        for client in clients:
            client.connect(("127.0.0.1", there.address.port))
            client.setblocking(False)
            with trio.move_on_after(1):
                await trio.lowlevel.wait_readable(client)
                refused += 1
            if not refused:
                break  # all would wait
            await trio.sleep(0.02)
    for client in clients:
        client.close()
    assert len(said) + len(caplog.records) == 1, [line["event"] for line in said]
    assert said[0]["event"] == "no connection can be accepted now"
    assert refused == DIALS
    with trio.fail_after(10):
        assert await here.dial("127.0.0.1", there.address.port) == there.id


async def test_strangers_and_peers_have_the_share_and_no_more(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections without a handshake and with one are counted, and some files are left to dial with."""
    monkeypatch.setattr(libp2p_host, "HANDSHAKE_TIMEOUT", 3600.0)  # none of them makes room by giving up
    files = RingFiles(shares(256).ring)
    here = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0), files=files)
    peers = [Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)) for _ in range(30)]
    for host in (here, *peers):
        await nursery.start(host.run)
    port = here.address.port
    with ExitStack() as strangers, capture_logs() as said:
        for number in range(150):
            stranger = strangers.enter_context(socket.socket())
            stranger.bind((f"127.0.1.{number % 50 + 1}", 0))
            stranger.setblocking(False)
            stranger.connect_ex(("127.0.0.1", port))
        for peer in peers:
            with suppress(RingError):
                await peer.dial("127.0.0.1", port)
        with trio.fail_after(60):
            while not here.connected():
                await trio.sleep(0.01)
        assert len(here.connected()) <= files.limit(libp2p_host.MAX_INBOUND_PER_ADDRESS, 4)
        assert len(here._half_open) <= files.limit(libp2p_host.MAX_HALF_OPEN, 8)
        assert files._inbound <= shares(256).ring * 3 // 4
        silent = [peer for peer in peers if not here.is_connected(peer.id)]
        assert await here.dial("127.0.0.1", silent[0].address.port) == silent[0].id
        for peer in peers:
            peer.disconnect(here.id)
    with trio.fail_after(60):
        while files._inbound or files._outbound:
            await trio.sleep(0.01)
    assert len([line for line in said if line["log_level"] != "debug"]) <= 1


async def test_inbound_sockets_leave_files_for_dials() -> None:
    files = RingFiles(40)
    with capture_logs() as said:
        assert sum(files.enter(inbound=True) for _ in range(100)) == 30
        assert sum(files.enter(inbound=False) for _ in range(100)) == 10
        files.leave(inbound=False)
        assert not files.enter(inbound=True)
        assert files.enter(inbound=False)
        files.leave(inbound=True)
        assert files.enter(inbound=True)
    assert [(line["log_level"], line["allowed"]) for line in said] == [("warning", 40)]


async def test_a_dial_that_fails_is_not_counted_any_more(autojump_clock: MockClock) -> None:
    files = RingFiles(8)
    here = Dialler(files)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for _ in range(20):
            with pytest.raises(OSError, match="refused|failed"):
                await here.connect(*unused.getsockname(), named=True)
    assert files._outbound == 0
    while files.enter(inbound=False):
        pass
    with pytest.raises(OSError, match="too few open files"):
        await here.connect("127.0.0.1", 1, named=True)


def test_enough_files_change_no_limit_and_few_have_parts() -> None:
    limits = (
        (libp2p_host.MAX_HALF_OPEN, 8),
        (libp2p_host.MAX_HALF_OPEN_PER_ADDRESS, 16),
        (libp2p_host.MAX_INBOUND_PER_ADDRESS, 4),
        (dialler.MAX_DIALS, 32),
        (dialler.MAX_LATE_DIALS, 16),
    )
    assert [RingFiles(RING_FILES).limit(most, part) for most, part in limits] == [most for most, _ in limits]
    assert [RingFiles(shares(1024).ring).limit(most, part) for most, part in limits] == [56, 28, 112, 14, 28]
    assert [RingFiles(0).limit(most, part) for most, part in limits] == [1] * 5
    inbound = libp2p_host.MAX_CONNECTIONS + libp2p_host.MAX_HALF_OPEN
    assert inbound <= RING_FILES * 3 // 4
