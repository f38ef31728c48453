# One member of a measured ring, as a process of its own: the router of the sidecar and nothing else of it.  It is
# told what to do in lines of JSON and answers each with one, so that all clocks are read beside what they measure.

"""A router that is driven over a socket."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Sequence
from typing import Any

import trio

from spegel_consul import log
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter

LOOPBACK = "127.0.0.1"
_POLL = 0.005


class Node:
    """Carries out commands; each method is one, its arguments are the command's."""

    def __init__(self, router: KadRouter) -> None:
        self._router = router

    async def hello(self) -> dict[str, Any]:
        """Who this is and where it listens."""
        return {"id": self._router.me.id, "addrs": list(self._router.me.addrs)}

    async def join(self, addrs: Sequence[str]) -> int:
        """To how many of ``addrs`` a connection stands; tried again until there are members, as the sidecar does."""
        peers = [PeerInfo(None, (addr,)) for addr in addrs]
        while not (reached := await self._router.join(peers)) or not self._router.members():
            await trio.sleep(0.2)
        return reached

    async def members(self, count: int, within: float) -> tuple[float, int]:
        """Seconds until there are ``count`` members, and how many there are then or after ``within`` seconds."""
        start = trio.current_time()
        with trio.move_on_after(within):
            while len(self._router.members()) < count:
                await trio.sleep(_POLL)
        return trio.current_time() - start, len(self._router.members())

    async def announce(self, prefix: str, count: int, within: float) -> tuple[float, float, int]:
        """Seconds, CPU seconds, and how many announcements were not acknowledged ``within`` seconds."""
        start, cpu = trio.current_time(), _cpu()
        await self._router.announce([f"{prefix}{number}" for number in range(count)])
        with trio.move_on_after(within):
            while self._router.unannounced:
                await trio.sleep(_POLL)
        return trio.current_time() - start, _cpu() - cpu, self._router.unannounced

    async def look_up(self, keys: Sequence[str], count: int, pause: float) -> list[tuple[float, float, list[str]]]:
        """For each key: seconds to the first provider (or to the end), to the end, and the providers' ids."""
        answers = []
        for key in keys:
            start = trio.current_time()
            first, found = 0.0, []
            with trio.move_on_after(5):
                with self._router.lookup(key, count=count) as providers:
                    async for provider in providers:
                        first = first or trio.current_time() - start
                        found.append(provider.peer_id)
            took = trio.current_time() - start
            answers.append((first or took, took, found))
            await trio.sleep(pause)
        return answers

    async def until_gone(self, key: str, peer: str, within: float) -> tuple[float, float]:
        """Look ``key`` up until ``peer`` is not offered any more: seconds it took, and the slowest lookup's."""
        start = trio.current_time()
        slowest = 0.0
        with trio.move_on_after(within):
            while True:
                ((_, took, found),) = await self.look_up([key], 3, 0)
                slowest = max(slowest, took)
                if peer not in found:
                    break
                await trio.sleep(_POLL)
        return trio.current_time() - start, slowest

    async def records(self) -> int:
        """How many records of others this node holds."""
        return self._router.records


def run(control: socket.socket) -> None:
    """Be a node until the other end of ``control`` is closed."""
    log.configure("error", "json")
    trio.run(_run, control)


async def _run(control: socket.socket) -> None:
    router = KadRouter(Libp2pHost(load_or_create(None), bind=(LOOPBACK, 0)), registry=(LOOPBACK, 5000))
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    async with trio.open_nursery() as nursery:
        await nursery.start(router.run)
        node = Node(router)
        buffer = b""
        while data := await stream.receive_some():
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                command, arguments = json.loads(line)
                answer = await getattr(node, command)(*arguments)
                await stream.send_all(json.dumps(answer).encode() + b"\n")
        nursery.cancel_scope.cancel()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
