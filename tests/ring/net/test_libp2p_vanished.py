# Hosts that are gone, or never were: dials of them don't delay those of others.

from __future__ import annotations

import os

import pytest
import trio
from conformance.router import eventually
from ring.net.test_libp2p_hostile import Victim, attacker, friend, victim

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.net import dialler
from spegel_consul.ring.net.host import Silent
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.router import KadRouter
from tests.ring.net.libp2p_floods import PING, WITHIN

__all__ = ["attacker", "friend", "victim"]


class Vanished:
    """How many dials wait for hosts at 127.0.9.*, which do not answer until they are known not to exist."""

    def __init__(self) -> None:
        self.waiting = 0
        self.known = trio.Event()


@pytest.fixture
def vanished(monkeypatch: pytest.MonkeyPatch) -> Vanished:
    """Nobody who dials them gives up, so whatever waits for such a dial waits for ever."""
    monkeypatch.setattr(dialler, "FIRST_TIMEOUT", 3600.0)
    real, vanished = trio.open_tcp_stream, Vanished()

    async def dial(host: str, port: int) -> trio.SocketStream:
        if not host.startswith("127.0.9."):
            return await real(host, port)
        vanished.waiting += 1
        try:
            await vanished.known.wait()
        finally:
            vanished.waiting -= 1
        raise OSError("no route to this host")

    monkeypatch.setattr(trio, "open_tcp_stream", dial)
    return vanished


def _gone(number: int) -> Contact:
    peer = b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")
    return Contact(peer, (Address(f"127.0.9.{number % 250 + 1}", 1 + number),))


async def test_hosts_that_vanished_do_not_delay_the_dials_of_others(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, vanished: Vanished
) -> None:
    membership = victim.router._membership
    for number in range(300):
        membership.learn(_gone(number), source=os.urandom(8))
        membership._failed(_gone(number).id, Silent(), asked=trio.current_time())
    await eventually(lambda: vanished.waiting >= 16, WITHIN)
    with trio.fail_after(WITHIN):
        assert await victim.host.dial("127.0.0.1", attacker.address.port) == attacker.id
    assert vanished.waiting == 16
    vanished.known.set()
    await victim.still_works(friend)


async def test_questions_to_hosts_that_never_were_do_not_delay_those_to_others(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, vanished: Vanished, nursery: trio.Nursery
) -> None:
    membership = victim.router._membership
    for number in range(300):
        membership.learn(_gone(number), source=os.urandom(8))
        nursery.start_soon(membership.ask, _gone(number).id, PING)
    await eventually(lambda: vanished.waiting >= 32, WITHIN)
    membership.learn(Contact(attacker.id, (attacker.address,)), source=b"x")
    with trio.fail_after(WITHIN):
        stream = await victim.host.open(attacker.id, (attacker.address,), "/ipfs/ping/1.0.0")
    assert vanished.waiting == 32
    stream.reset()
    vanished.known.set()
    await victim.still_works(friend)
