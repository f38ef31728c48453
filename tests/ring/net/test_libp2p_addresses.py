"""The addresses of peers, as their connections show them."""

from __future__ import annotations

import socket

import pytest
import trio
from conformance.router import eventually

from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create


async def test_a_peer_that_dials_a_socket_of_both_families_proves_its_plain_address(nursery: trio.Nursery) -> None:
    bound = listen(ListenAddress("", 0), "--router-addr")
    if bound.family != socket.AF_INET6:
        pytest.skip("this machine has no IPv6")
    here = Libp2pHost(load_or_create(None), bind=bound, advertise=("10.0.0.7", bound.getsockname()[1]))
    there = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))
    for host in (here, there):
        await nursery.start(host.run)
    await there.dial("127.0.0.1", here.address.port)
    await eventually(here.connected)
    assert here._dialler.has_heard_from("127.0.0.1")
    assert set(here._inbound) == {"127.0.0.1"}
