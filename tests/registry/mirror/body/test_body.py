"""One body on the wire: whatever became of holding it, and wherever it ends, each byte is sent once and in order."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import small_spool
from spegel_consul.zerocopy.hash_tap import Tap
from spegel_consul.zerocopy.relay import Relay
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.spool import Spool

from ...conftest import head
from ...image import BLOB_PATH, LAYER

SIZE = len(LAYER)
CUTS = (0, 1, 4095, 4096, 700_000, 900_001, SIZE - 1, SIZE)
"""After so many bytes the peer leaves, and nobody else has the rest."""


async def on_the_wire(node: Any) -> tuple[bytes, bytes, bool]:
    """The head and the body as they came, and whether the server kept the connection."""
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        await stream.send_all(f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        top, _, body = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        try:
            while len(body) < length:
                data = await stream.receive_some()
                if not data:
                    return top, body, False
                body += data
            # what was sent too much stands before the answer to the next request
            await stream.send_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            after = b""
            while data := await stream.receive_some():
                after += data
        except trio.BrokenResourceError:
            return top, body, False
        body += after.partition(b"HTTP/1.1 200")[0]
        return top, body, b"HTTP/1.1 200" in after


@contextmanager
def state(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """What becomes of holding: all is held, or it ends at byte 900,000 because it is late, or 500,000 as it is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    enough = SIZE - 900_000
    if name.endswith("in memory"):
        monkeypatch.setattr(small_spool, "SMALL", 4 << 20)
        monkeypatch.setattr(small_spool, "_spare_buffers", [])
    if name == "late in memory":
        monkeypatch.setattr(SmallSpool, "ended", property(lambda self: self.left <= enough))
    elif name == "late":
        monkeypatch.setattr(Spool, "ended", property(lambda self: self.full or self.left <= enough))
    elif name == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def without_threads(monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """``who`` finds no thread to hash in: a relay, or nobody at all."""
    start, relays = Tap.start, []
    original = Relay.__init__

    def watched(self: Relay, *args: Any) -> None:
        original(self, *args)
        relays.append(self._tap)

    async def refused(self: Tap) -> bool:
        return who == "relay" and self not in relays and await start(self)

    monkeypatch.setattr(Relay, "__init__", watched)
    monkeypatch.setattr(Tap, "start", refused)


@pytest.mark.parametrize("threads", ["threads", "relay", "all"])
@pytest.mark.parametrize("name", ["held", "held in memory", "late in memory", "late", "full", "streamed"])
async def test_what_is_sent_is_a_prefix_and_all_of_it_or_cut(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, name: str, threads: str
) -> None:
    settings = MirrorSettings(verify_first=0 if name == "streamed" else 32 << 20)
    if threads != "threads":
        without_threads(monkeypatch, threads)
    with state(monkeypatch, name), trio.fail_after(60):
        for cut in CUTS:
            node = await start_node(settings=settings)
            peer = await start_peer(head(200, SIZE), LAYER[:cut])
            node.router.knows(peer.address)
            top, body, kept = await on_the_wire(node)
            if top.startswith(b"HTTP/1.1 404"):
                assert cut < SIZE, "all of it was there"
                continue
            assert top.startswith(b"HTTP/1.1 200")
            assert b"content-length: %d" % SIZE in top.lower()
            assert body == LAYER[: len(body)], f"cut at {cut}: {len(body)} bytes came"
            assert (len(body) == SIZE) == kept == (cut == SIZE), f"cut at {cut}: {len(body)} bytes, kept: {kept}"


@pytest.mark.parametrize("threads", ["threads", "relay", "all"])
@pytest.mark.parametrize("name", ["held", "held in memory", "late in memory", "late", "full", "streamed"])
async def test_wrong_bytes_are_never_whole(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, name: str, threads: str
) -> None:
    settings = MirrorSettings(verify_first=0 if name == "streamed" else 32 << 20)
    if threads != "threads":
        without_threads(monkeypatch, threads)
    with state(monkeypatch, name), trio.fail_after(60):
        for at in (0, 4096, 899_999, 900_001, SIZE - 1):
            node = await start_node(settings=settings)
            peer = await start_peer(head(200, SIZE), LAYER[:at] + bytes([LAYER[at] ^ 1]) + LAYER[at + 1 :])
            node.router.knows(peer.address)
            top, body, kept = await on_the_wire(node)
            assert top.startswith(b"HTTP/1.1 404") or (len(body) < SIZE and not kept)


@pytest.mark.parametrize("name", ["late in memory", "late", "full"])
async def test_the_last_byte_is_not_waited_for_twice(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A peer that keeps its connection open after the body owes nothing more, whichever way the bytes took."""
    with state(monkeypatch, name), trio.fail_after(60):
        node = await start_node()
        peer = await start_peer(head(200, SIZE), LAYER, then="hang")
        node.router.knows(peer.address)
        _, body, kept = await on_the_wire(node)
    assert body == LAYER
    assert kept
    assert node.mirror.peers.penalties.stalls == 0


async def test_a_file_that_was_cut_short_behind_our_back(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, node = pair
    settle = Spool.settle

    async def cut_short(self: Spool) -> bool:
        settled = await settle(self)
        os.ftruncate(self.fd, 1_000_000)
        return settled

    monkeypatch.setattr(Spool, "settle", cut_short)
    with trio.fail_after(60):
        _, body, kept = await on_the_wire(node)
    assert not kept
    assert body == LAYER[:1_000_000]
    assert node.metric("spegel_transfers_cut_total") == 1
