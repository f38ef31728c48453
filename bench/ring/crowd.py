# In a process of its own, so that CPU and memory of the measured node are its own.

"""Identities of a large ring, of which the nearest ones to one point of it run."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from itertools import count, islice
from types import TracebackType
from typing import Any

import trio

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.placement import REPLICAS, Placement
from spegel_consul.ring.net import node_key
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.router import KadRouter

LOOPBACK = "127.0.0.1"
RUNNING = 2 * REPLICAS
_PATIENCE = 120.0


class Crowd:
    """``count`` members, as a context manager: the first ``RUNNING`` of ``peers`` run.

    ``held`` are keys that a running member has announced, ``free`` are keys that nobody has; the keepers of all of them
    run.
    """

    def __init__(self, members: int, *, held: int, free: int) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                ours.close()
                trio.run(_run, theirs, members, held, free)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._control = ours
        ours.settimeout(_PATIENCE)
        with ours.makefile("rb") as answers:
            line = answers.readline()
        if not line:
            raise SystemExit("the members that should run have ended")
        hello: dict[str, Any] = json.loads(line)
        self.peers = [bytes.fromhex(each) for each in hello["peers"]]
        self.ports: list[int] = hello["ports"]
        self.held: list[str] = hello["held"]
        self.free: list[str] = hello["free"]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._control.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


async def _run(control: socket.socket, members: int, held: int, free: int) -> None:
    """Be the crowd until the process is killed."""
    point = position(dht_key("point"))
    keys = [node_key.load_or_create(None) for _ in range(members)]
    keys.sort(key=lambda each: position(node_key.peer_id(each)) ^ point)
    peers = list(map(node_key.peer_id, keys))
    routers = [
        KadRouter(Libp2pHost(key, bind=(LOOPBACK, 0)), registry=(LOOPBACK, 5000))
        for key in keys[: min(RUNNING, members)]
    ]
    chosen = _keys_of(peers)
    told, untold = list(islice(chosen, held)), list(islice(chosen, free))
    async with trio.open_nursery() as nursery:
        for router in routers:
            await nursery.start(router.run)
        ports = [router._membership.routers[0].port for router in routers]
        now = trio.current_time() - 60  # so that they are settled
        for router in routers:
            # so that it learns no member that does not run
            router._membership.exchange.greet = _no_exchange  # type: ignore[method-assign]
            for peer, port in zip(peers, ports, strict=False):
                contact = Contact(peer, (Address(LOOPBACK, port),), Address(LOOPBACK, 5000, http=True))
                member = router._membership.table.learn(contact, now, direct=True)
                if member is not None:
                    member.ours = False  # so that no list is exchanged meanwhile
        await routers[0].announce(told)
        while routers[0].unannounced:
            await trio.sleep(0.01)
        hello = {"peers": [peer.hex() for peer in peers], "ports": ports, "held": told, "free": untold}
        await trio.SocketStream(trio.socket.from_stdlib_socket(control)).send_all(json.dumps(hello).encode() + b"\n")
        await trio.sleep_forever()


async def _no_exchange(peer: bytes) -> None:
    pass


def _keys_of(peers: list[bytes]) -> Iterator[str]:
    """Keys whose keepers all are among the members that run."""
    placement, running = Placement(), frozenset(peers[:RUNNING])
    for peer in peers:
        placement.add(peer, position(peer))
    for number in count():
        key = f"key {number}"
        if running.issuperset(placement.closest(position(dht_key(key)))):
            yield key
