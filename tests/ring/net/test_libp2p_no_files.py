"""A host at the limit of open files refuses dials at once, and says so once."""

from __future__ import annotations

import logging
import socket

import pytest
import trio
from lab.no_files import no_files
from structlog.testing import capture_logs

from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create

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
