# The kernel here has no netem.  So connections that arrive at a node's ports are led through a relay of ours, which
# hands each piece on after a while, in both directions; half a round trip each.

"""Latency in front of a node's TCP ports."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import trio
from lab.cluster import Node
from lab.process import Process

_RELAY = 20_000  # added to the port


class Delay:
    """While entered, what others say to ``ports`` of ``node`` and what is answered takes ``seconds`` each way."""

    def __init__(self, node: Node, seconds: float, ports: tuple[int, ...]) -> None:
        self._node = node
        self._seconds = seconds
        self._ports = ports
        self._relays: list[Process] = []

    def __enter__(self) -> Delay:
        for port in self._ports:
            argv = [sys.executable, "-m", "tests.faults.delay", self._node.ip, str(port), str(self._seconds)]
            log = self._node.dir / f"delay{port}.log"
            env = {"PYTHONPATH": str(Path(__file__).parents[1])}
            self._relays.append(self._node.netns.start(f"relay of {port}", argv, log_path=log, env=env))
        for port, relay in zip(self._ports, self._relays, strict=True):
            relay.until(lambda port=port: self._is_up(port), timeout=20, what=f"{relay} listens")
            self._redirect("-A", port)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for port, relay in zip(self._ports, self._relays, strict=False):
            self._redirect("-D", port)
            relay.kill9()

    def _is_up(self, port: int) -> bool:
        try:
            self._node.netns.connect(self._node.ip, port + _RELAY).close()
        except OSError:
            return False
        return True

    def _redirect(self, how: str, port: int) -> None:
        words = f"iptables -w -t nat {how} PREROUTING -i eth0 -p tcp --dport {port} -j REDIRECT --to-ports"
        self._node.netns.run(*words.split(), str(port + _RELAY))


async def _relay(host: str, port: int, seconds: float) -> None:
    async def accept(client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream(host, port) as server, trio.open_nursery() as nursery:
            nursery.start_soon(_carry, client, server, seconds)
            nursery.start_soon(_carry, server, client, seconds)

    async def safely(client: trio.SocketStream) -> None:
        try:
            await accept(client)
        except* OSError:
            pass
        except* trio.BrokenResourceError:
            pass

    await trio.serve_tcp(safely, port + _RELAY, host=host)


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, seconds: float) -> None:
    send, receive = trio.open_memory_channel[tuple[float, bytes]](1000)

    async def hand_on() -> None:
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
        await sink.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_on)
        async with send:
            async for data in source:
                await send.send((trio.current_time() + seconds, data))


if __name__ == "__main__":
    trio.run(_relay, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
