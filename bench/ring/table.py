"""What a node of a large ring keeps and computes, without any network: memory, and the CPU of one announcement period.

The tables are the sidecar's own. What is not in here is the connections: about 60 KiB for each peer that is connected.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from rich.console import Console
from rich.table import Table

from bench.proc import rss
from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import peer_id_of_ed25519
from spegel_consul.ring.dht.announcements import BATCH
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.messages import Message, MessageType, WirePeer, decode, encode, uvarint
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import TTL, KadRouter


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ring.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=1000, metavar="N", help="nodes in the ring (default: 1000)")
    parser.add_argument("--keys", type=int, default=2000, metavar="K", help="keys of each node (default: 2000)")
    options = parser.parse_args()
    if not REPLICAS < options.members <= 4096 or options.keys < 1:
        parser.error(f"--members must be {REPLICAS + 1} to 4096, --keys at least 1")
    table = Table(title=f"One node of {options.members} with {options.keys} keys each", title_justify="left")
    table.add_column("figure")
    table.add_column("found", justify="right", no_wrap=True)
    for name, figure in trio.run(_figures, options.members, options.keys):
        table.add_row(name, figure)
    Console(width=110, highlight=False).print(table)


async def _figures(members: int, keys: int) -> list[tuple[str, str]]:
    rng = random.Random(1)
    router = KadRouter(Libp2pHost(load_or_create(None), bind=("10.0.0.1", 5001)), registry=("10.0.0.1", 5000), rng=rng)
    table, records, announcements = router._members, router._records, router._announcements
    peers = [peer_id_of_ed25519(rng.randbytes(32)) for _ in range(members - 1)]
    figures = [("RSS with nobody known", f"{_mib():.1f} MiB")]

    with _grows(figures, f"{members - 1} members"):
        for number, peer in enumerate(peers):
            ip = f"10.{1 + (number >> 8)}.{number & 255}.7"
            table.learn(Contact(peer, (Address(ip, 5001),), Address(ip, 5000, http=True)), 0.0, direct=True)

    own = [dht_key(f"of this node {number}") for number in range(keys)]
    with _grows(figures, f"{keys} own keys, to be told to {REPLICAS} each") as placed:
        announcements.add(own)
    me = (router._membership.me,)
    told = encoded = 0
    with _grows(figures, f"all {keys * REPLICAS} told and acknowledged") as telling:
        while batches := announcements.batches(1.0):
            for batch in batches:
                for key in batch.keys:
                    encoded += len(encode(Message(MessageType.ADD_PROVIDER, key, providers=me)))
                told += len(batch.keys)
                announcements.told(batch, 1.0)
    assert told == keys * REPLICAS

    # each of the others tells this node of the keys for which it is among the nearest
    share = keys * REPLICAS // (members - 1) + 1
    theirs = [(peer, dht_key(f"{number} {index}")) for number, peer in enumerate(peers) for index in range(share)]
    wire = [
        encode(Message(MessageType.ADD_PROVIDER, key, (), (WirePeer(peer, me[0].addresses),))) for peer, key in theirs
    ]
    skip = len(uvarint(len(wire[0]) - 2))
    gc.collect()
    with _grows(figures, f"{len(theirs)} records of others") as taking:
        for (peer, key), message in zip(theirs, wire, strict=True):
            decode(message[skip:])
            records.add(key, peer, 1.0)
    period = telling[0] + taking[0]
    figures.append(("bytes per record", f"{taking[1] * 2**20 / len(theirs):.0f} B"))
    figures.append((f"sent in {TTL / 60:.0f} min by announcing", f"{encoded / 2**20:.1f} MiB in batches of ≤ {BATCH}"))
    figures.append((f"CPU of announcing and taking, of {TTL / 60:.0f} min", f"{100 * period / TTL:.2f} % of a core"))
    figures.append(("CPU of placing one key", f"{1e6 * placed[0] / keys:.0f} µs"))

    began = time.process_time()
    for peer, key in theirs[:2000]:
        assert records.providers(key, 2.0) == [peer]
        table.closest(position(key))
    figures.append(
        ("CPU of one key's providers and nearest members", f"{1e6 * (time.process_time() - began) / 2000:.0f} µs")
    )
    began = time.process_time()
    for _, key in theirs[:500]:
        answer = router._answers.answer(peers[0], Message(MessageType.GET_PROVIDERS, key))
        assert answer is not None
        encode(answer)
    figures.append(("CPU of one answer to GET_PROVIDERS", f"{1e6 * (time.process_time() - began) / 500:.0f} µs"))
    began = time.process_time()
    for _ in records.sweep(2.0):
        pass
    figures.append(
        ("CPU of one sweep for expired records, every minute", f"{1e3 * (time.process_time() - began):.1f} ms")
    )
    return figures


@contextmanager
def _grows(figures: list[tuple[str, str]], name: str) -> Iterator[list[float]]:
    """CPU seconds and MiB of what happens within."""
    gc.collect()
    before, began = _mib(), time.process_time()
    found: list[float] = []
    yield found
    found += [time.process_time() - began, 0.0]
    gc.collect()
    found[1] = _mib() - before
    figures.append((name, f"+{found[1]:.1f} MiB, {found[0]:.2f} s CPU"))


def _mib() -> float:
    return rss(os.getpid()) / 2**20


if __name__ == "__main__":
    main()
