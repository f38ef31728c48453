"""What a node of a large ring keeps and computes: memory, CPU when nothing happens, an announcement, a lookup.

One router runs on loopback, and its tables are those of a node in a stable ring: all members, its own keys as told to
their keepers, and its share of the records of others. Forty of the members run too, in a second process: the nearest
ones to one point of the ring. Keys beside that point are announced and looked up over real connections. The other
members are entries of the tables only, so CPU and memory of what concerns all of them are put together from parts that
are measured. The product's table of members has a limit, which a step beyond it lifts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from rich.console import Console
from rich.table import Table

from bench.proc import rss
from bench.ring.crowd import LOOPBACK, RUNNING, Crowd
from spegel_consul import log
from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.ring.dht.keys import dht_key
from spegel_consul.ring.dht.messages import Message, MessageType, WirePeer, decode, encode, uvarint
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import TTL, KadRouter

_STEPS = [100, 1_000, 10_000]
_IMAGE, _WARM_UP, _LOOKUPS = 10, 60, 200
_GOSSIP, _GOSSIP_BY = 60.0, 20  # seconds between two exchanges: see gossip.py


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ring.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=_STEPS, metavar="N", help="default: 100 1000 10000")
    parser.add_argument("--keys", type=int, default=2000, metavar="K", help="keys of each node (default: 2000)")
    parser.add_argument("--idle", type=float, default=10, metavar="S", help="seconds of idling (default: 10)")
    options = parser.parse_args()
    if not all(RUNNING < each <= 50_000 for each in options.nodes):
        parser.error(f"--nodes must be {RUNNING + 1} to 50000")
    if options.keys < 1 or options.idle <= 0:
        parser.error("--keys must be at least 1, --idle more than 0")
    steps = [_in_a_process(nodes, options.keys, options.idle) for nodes in options.nodes]
    table = Table(title=f"One node of a ring in which each has {options.keys} keys", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for nodes in options.nodes:
        table.add_column(f"{nodes} nodes", justify="right", no_wrap=True)
    for name in steps[0]:
        table.add_row(name, *(step[name] for step in steps))
    Console(width=170, highlight=False).print(table)


def _in_a_process(nodes: int, keys: int, idle: float) -> dict[str, str]:
    """The figures of one step; from a process of its own, because a heap hides the memory that was freed in it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            log.configure("error", "json")
            with Crowd(nodes - 1, held=_WARM_UP + _LOOKUPS, free=2 * _IMAGE) as crowd:
                figures = trio.run(_figures, crowd, keys, idle)
            theirs.sendall(json.dumps(figures).encode())
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    with ours, ours.makefile("rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    if not text:
        raise SystemExit(f"the step of {nodes} nodes failed")
    found: dict[str, str] = json.loads(text)
    return found


async def _figures(crowd: Crowd, keys: int, idle: float) -> dict[str, str]:
    host = Libp2pHost(load_or_create(None), bind=(LOOPBACK, 0))
    router = KadRouter(host, registry=(LOOPBACK, 5000))
    async with trio.open_nursery() as nursery:
        await nursery.start(router.run)
        found = await _measure(router, host, crowd, keys, idle)
        nursery.cancel_scope.cancel()
    return found


@dataclass
class _Cost:
    """CPU seconds, seconds, and bytes of memory."""

    cpu: float = 0.0
    took: float = 0.0
    memory: int = 0


async def _measure(router: KadRouter, host: Libp2pHost, crowd: Crowd, keys: int, idle: float) -> dict[str, str]:
    others = len(crowd.peers)
    members = router._members
    gc.collect()
    empty = rss(os.getpid())
    with _costs() as learning:
        _learn(router, crowd)
    own, told, encoded = _tell(router, keys)
    taking, sweeping, records = _take(router, crowd, keys * REPLICAS)
    full = rss(os.getpid())

    # the first announcement makes the connections
    dialling = await _announce(router, crowd.free[:_IMAGE])
    connected = len(host.connected())
    announcing = await _announce(router, crowd.free[_IMAGE:])
    await _look_up(router, crowd.held[:_WARM_UP])
    with _costs() as looking:
        times = await _look_up(router, crowd.held[_WARM_UP:])
    await trio.sleep(idle)  # because new acquaintances exchange lists first
    with _costs() as idling:
        await trio.sleep(idle)
    exchanging, length = await _exchange(router, crowd.peers[0])
    answering, wide = _answer(router, crowd, records[0]), _answer_of_all(router, crowd)

    assert len(members) == others
    targets = len(router._announcements._targets)
    contact = announcing.cpu / connected  # of a batch for one keeper
    renewing = (2 * targets * contact + told.cpu + taking.cpu) / (TTL / 60)
    gossip = 2 * exchanging.cpu * 60 / max(_GOSSIP, others / _GOSSIP_BY)
    quiet = [idling.cpu * 60 / idle, sweeping.cpu, gossip, renewing]
    connection = max(dialling.memory, 0) / connected
    return {
        "RSS of a router that knows nobody": _mib(empty),
        "RSS, tables full, no connections": _mib(full),
        "… for the members": _mib(learning.memory),
        "… for own keys and their keepers": _mib(own.memory + told.memory),
        f"… for {len(records)} records of others": _mib(taking.memory),
        "bytes of one member": f"{learning.memory / others:.0f} B",
        "bytes of one record": f"{taking.memory / len(records):.0f} B",
        "bytes of one connection": f"{connection / 1024:.0f} KiB",
        "RSS with a connection to each keeper": _mib(full + targets * connection),
        "CPU of a quiet minute": f"{sum(quiet):.2f} s, {100 * sum(quiet) / 60:.2f} %",
        "… idle, sweep, exchanges, renewals": ", ".join(f"{each:.2f}" for each in quiet) + " s",
        "one member exchange, sent and merged": f"{length / 1024:.0f} KiB, {1e3 * exchanging.cpu:.0f} ms CPU",
        "sent by renewals": f"{encoded / 2**20 / (TTL / 60):.2f} MiB a minute",
        f"announcement of {_IMAGE} keys, connected": f"{1e3 * announcing.took:.0f} ms",
        "… with its connections, which are new": f"{1e3 * dialling.took:.0f} ms, {connected} of them",
        "CPU of a start: a connection to each keeper": f"{targets * dialling.cpu / connected:.1f} s",
        "lookup, p50 and p95": f"{1e3 * times[len(times) // 2]:.1f}, {1e3 * times[int(0.95 * len(times))]:.1f} ms",
        "CPU of a lookup": f"{1e3 * looking.cpu / len(times):.1f} ms",
        "CPU of an answer": f"{1e6 * answering:.0f} µs",
        "… for a key that all nodes have": f"{1e6 * wide:.0f} µs",
    }


def _learn(router: KadRouter, crowd: Crowd) -> None:
    members, now = router._members, trio.current_time() - 60  # so that they are settled
    members._capacity = max(members._capacity, len(crowd.peers))
    for number, peer in enumerate(crowd.peers):
        runs = number < len(crowd.ports)
        ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        at = Address(LOOPBACK, crowd.ports[number]) if runs else Address(ip, 5001)
        members.learn(Contact(peer, (at,), Address(at.host, 5000, http=True)), now, direct=True)
        if (member := members.get(peer)) is not None:
            member.ours = False  # so that no list is exchanged meanwhile


def _tell(router: KadRouter, keys: int) -> tuple[_Cost, _Cost, int]:
    """Own keys, as told to their keepers; also the bytes that it would have sent."""
    announcements, me, now = router._announcements, (router._membership.me,), trio.current_time()
    encoded = 0
    with _costs() as placing:
        announcements.add([dht_key(f"of this node {number}") for number in range(keys)])
    with _costs() as telling:
        while batches := announcements.batches(now):
            for batch in batches:
                for key in batch.keys:
                    encoded += len(encode(Message(MessageType.ADD_PROVIDER, key, providers=me)))
                announcements.told(batch, now)
    return placing, telling, encoded


def _take(router: KadRouter, crowd: Crowd, share: int) -> tuple[_Cost, _Cost, list[bytes]]:
    """Records of others, and what one sweep of them costs."""
    records, now = router._records, trio.current_time()
    theirs = [(crowd.peers[number % len(crowd.peers)], dht_key(f"theirs {number}")) for number in range(share)]
    address = router._membership.me.addresses
    wire = [encode(Message(MessageType.ADD_PROVIDER, key, (), (WirePeer(peer, address),))) for peer, key in theirs]
    skip = len(uvarint(len(wire[0]) - 2))
    with _costs() as taking:
        for (peer, key), message in zip(theirs, wire, strict=True):
            decode(message[skip:])
            records.add(key, peer, now)
    with _costs() as sweeping:
        for _ in records.sweep(now):
            pass
    return taking, sweeping, [key for _, key in theirs]


async def _announce(router: KadRouter, keys: list[str]) -> _Cost:
    with _costs() as cost, trio.fail_after(30):
        began = trio.current_time()
        await router.announce(keys)
        while router.unannounced:
            await trio.sleep(0.001)
        took = trio.current_time() - began
    cost.took = took
    return cost


async def _look_up(router: KadRouter, keys: list[str]) -> list[float]:
    """Seconds to the first provider of each key, sorted."""
    times = []
    for key in keys:
        began = trio.current_time()
        with trio.fail_after(5):
            with router.lookup(key) as providers:
                async for _ in providers:
                    times.append(trio.current_time() - began)
                    break
        await trio.sleep(0.002)
    assert len(times) == len(keys)
    return sorted(times)


async def _exchange(router: KadRouter, peer: bytes) -> tuple[_Cost, int]:
    """One member exchange: the own list made, and another of the same length merged."""
    exchange = router._membership.exchange
    body = exchange._reports(peer)
    skip = next(size for size in range(1, 6) if uvarint(len(body) - size) == body[:size])
    with _costs() as cost:
        exchange._reports(peer)
        await exchange.merge(peer, body[skip:])
    return cost, len(body)


def _answer(router: KadRouter, crowd: Crowd, key: bytes) -> float:
    """CPU seconds of one answer."""
    with _costs() as cost:
        for number in range(200):
            asker = crowd.peers[number % len(crowd.peers)]
            answer = router._answers.answer(asker, Message(MessageType.GET_PROVIDERS, key, brief=True))
            assert answer is not None
            assert answer.providers
            encode(answer)
    return cost.cpu / 200


def _answer_of_all(router: KadRouter, crowd: Crowd) -> float:
    key = dht_key("of all")
    for peer in crowd.peers:
        router._records.add(key, peer, trio.current_time())
    return _answer(router, crowd, key)


@contextmanager
def _costs() -> Iterator[_Cost]:
    gc.collect()
    cost, memory, cpu = _Cost(), rss(os.getpid()), time.process_time()
    yield cost
    cost.cpu = time.process_time() - cpu
    gc.collect()
    cost.memory = rss(os.getpid()) - memory


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
