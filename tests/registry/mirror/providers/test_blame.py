"""Who is barred for wrong bytes: a peer that sent all of a body, alone, and nobody else.

The first half is a simulation: a transfer over peers that are honest, that leave half-way, that lie, or both, in any
mix. The second half are the same situations over real sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from spegel_consul.http.peer_client import PeerLimits, PeerResponse
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import OCIError
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.peers import PeerError, Provider
from spegel_consul.registry.mirror import mirror_peers
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.held_bodies import Feed
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorSettings
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.zerocopy.outlet import PieceOutlet
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import Throughput

from ...conftest import InOrder, ListRouter, head
from ...image import BLOB_PATH, LAYER, STREAMED, get

CONTENT = bytes(range(40))
DIGEST = Digest.of(CONTENT)
PIECE = 7


@dataclass
class SimulatedPeer:
    """Sends ``content``, of which a byte may be wrong; answer number n ends after ``leaves[n]`` bytes, if given."""

    content: bytes = CONTENT
    leaves: tuple[int | None, ...] = ()
    answers: int = 0
    alone: bool = False
    """Whether it has sent a whole body from the first byte to the last."""

    @property
    def lies(self) -> bool:
        return self.content != CONTENT


class SimulatedResponse(PeerResponse):
    """The bytes from ``start`` on."""

    encrypted = True
    source = None  # so the bytes pass through this process

    def __init__(self, peer: SimulatedPeer, start: int) -> None:
        self._peer = peer
        self._start, self._at = start, 0
        self._after = peer.leaves[peer.answers] if peer.answers < len(peer.leaves) else None
        peer.answers += 1
        self.connected = 0.0
        length = len(CONTENT) - start
        self.status = 206 if start else 200
        self._fields = {b"content-length": str(length), b"docker-content-digest": str(DIGEST)}
        if start:
            self._fields[b"content-range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"

    def header(self, name: bytes) -> str | None:
        return self._fields.get(name)

    async def chunks(self, throughput: Throughput | None = None) -> AsyncGenerator[bytes, None]:
        content = self._peer.content[self._start :]
        stop = len(content) if self._after is None else min(self._after, len(content) - 1)
        while self._at < stop:  # from where another task left it
            await trio.lowlevel.checkpoint()
            piece = content[self._at : min(self._at + PIECE, stop)]
            self._at += len(piece)
            if self._at == len(CONTENT):
                self._peer.alone = True
            yield piece
        if stop < len(content):
            raise PeerError("closed the connection")

    def discard(self) -> None:
        pass


class SimulatedClient:
    limits = PeerLimits()

    def __init__(self, peers: dict[tuple[str, int], SimulatedPeer]) -> None:
        self._peers = peers
        self.events: list[str] = []

    async def request(
        self, address: tuple[str, int], method: str, target: str, headers: list[tuple[str, str]], **_: object
    ) -> PeerResponse:
        await trio.lowlevel.checkpoint()
        wanted = dict(headers).get("range", "bytes=0-")
        start = int(wanted[6:].split("-")[0])
        self.events.append(f"from {start}")
        return SimulatedResponse(self._peers[address], start)


@dataclass
class Simulation:
    peers: list[SimulatedPeer]
    held: bool
    outcomes: list[str] = field(default_factory=list)
    barred: set[int] = field(default_factory=set)

    async def pull(self, mirror: Mirror, request: ContentRequest) -> str:
        received = b""

        async def take(piece: bytes) -> None:
            nonlocal received
            received += piece

        with mirror.begin(request, "GET") as trace:
            try:
                async with mirror.open(request, "GET", None, trace) as transfer:
                    await transfer.hold()
                    await transfer.send(PieceOutlet(take))
            except TransferCut:
                assert len(received) < len(CONTENT), "a body that was cut is not whole"
                return "cut"
            except OCIError:
                assert received == b"", "an error can't follow bytes"
                return "unknown"
        assert received == CONTENT, "only right bytes are whole"
        return "right"

    async def run(self, pulls: int) -> None:
        providers = [Provider(f"peer{i}", ("10.0.0.1", 1000 + i)) for i in range(len(self.peers))]
        client = SimulatedClient({each.registry: peer for each, peer in zip(providers, self.peers, strict=True)})
        router = ListRouter()
        router.providers = list(providers)
        limit = MirrorSettings(attempts=2 * len(self.peers), verify_first=1000 if self.held else 0)
        mirror = Mirror(MirrorParts(router, client, Metrics(), limit, rng=InOrder(0)))  # type: ignore[arg-type]
        request = parse_content_path(f"/v2/library/app/blobs/{DIGEST}", "ns=docker.io")
        mismatched = mirror.peers.mismatched

        def seen(*args: Any) -> None:
            client.events.append("wrong")
            mismatched(*args)

        mirror.peers.mismatched = seen  # type: ignore[method-assign]
        for _ in range(pulls):
            client.events.clear()
            self.outcomes.append(await self.pull(mirror, request))
            assert mirror.peers.held_bodies.get(DIGEST) is None
            assert mirror.peers.spool_space.promised == 0
            if "wrong" in client.events:
                later = client.events[client.events.index("wrong") :]
                assert set(later) <= {"wrong", "from 0"}, "what was wrong once is not mixed again"
        self.barred = {i for i, provider in enumerate(providers) if mirror.peers.penalties.bars(provider)}


def wrong_at(at: int) -> bytes:
    return CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]


offsets = st.integers(0, len(CONTENT) - 1)
peers = st.builds(
    SimulatedPeer,
    content=st.just(CONTENT) | offsets.map(wrong_at),
    leaves=st.lists(st.none() | offsets, max_size=4).map(tuple),
)


@settings(max_examples=250)
@given(peers=st.lists(peers, min_size=1, max_size=6), held=st.booleans())
def test_no_honest_peer_is_ever_barred_and_a_proven_liar_is(peers: list[SimulatedPeer], held: bool) -> None:
    before, mirror_peers.SMALL = mirror_peers.SMALL, 0
    try:
        simulation = Simulation(peers, held)
        # each liar costs a pull, and so may each peer that leaves, because it can hide a liar
        trio.run(simulation.run, len(peers) + 2 + sum(len(peer.leaves) for peer in peers))
    finally:
        mirror_peers.SMALL = before
    honest = {i for i, peer in enumerate(peers) if not peer.lies}
    assert not simulation.barred & honest
    assert simulation.barred >= {i for i, peer in enumerate(peers) if peer.lies and peer.alone}
    if any(not peer.lies and not peer.leaves for peer in peers):
        assert simulation.outcomes[-1] == "right"
        if held:
            assert set(simulation.outcomes) == {"right"}


def test_one_that_left_is_asked_again_when_the_one_that_finished_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_peers, "SMALL", 0)
    simulation = Simulation([SimulatedPeer(leaves=(10,)), SimulatedPeer(wrong_at(30))], held=True)
    trio.run(simulation.run, 1)
    assert (simulation.outcomes, simulation.barred) == (["right"], {1})


async def test_one_address_under_two_ids_is_one_sender(autojump_clock: trio.testing.MockClock) -> None:
    """It sent all of the body, alone, whatever the ids say that its records had."""
    mirror = Mirror(MirrorParts(ListRouter(), SimulatedClient({}), Metrics()))  # type: ignore[arg-type]
    position = Position(len(CONTENT))
    first, second = Provider("one", ("10.0.0.1", 1)), Provider("two", ("10.0.0.1", 1))
    feed = Feed(Head(DIGEST, "x", 0, 40, 40, partial=False), first, None, position, Throughput(1.0))
    position.took(10)
    feed.change(second, SimulatedResponse(SimulatedPeer(), 10))
    position.took(30)
    mirror.peers.mismatched(DIGEST, feed.senders)
    assert mirror.peers.penalties.bars(Provider("three", first.registry))
    # and a suspect is suspected under any id, and cleared under any
    other = Provider("other", ("10.0.0.2", 1))
    mirror.peers.suspects.add(DIGEST, [first, other])
    assert Provider("four", first.registry).registry in mirror.peers.suspects.of(DIGEST)
    mirror.peers.verified(DIGEST, [second])
    assert [mirror.peers.penalties.is_slow(each) for each in (first, other)] == [False, True]
    assert not mirror.peers.suspects.of(DIGEST)


def body_of(request: bytes, content: bytes, leaves: int | None = None) -> list[bytes | float]:
    """The answer to ``request``, with the bytes of ``content``; it ends ``leaves`` bytes after its start, if given."""
    size = len(content)
    if b"range: bytes=" not in request:
        return [head(200, size), content[:leaves]]
    start = int(request.split(b"range: bytes=")[1].split(b"-")[0])
    rest = content[start:]
    return [head(206, size - start, f"Content-Range: bytes {start}-{size - 1}/{size}"), rest[:leaves]]


@pytest.mark.parametrize("way", ["held", "streamed"])
async def test_one_that_leaves_is_not_barred_for_the_junk_of_the_one_that_finishes(
    start_node: Any, start_peer: Any, way: str
) -> None:
    asker = await start_node(settings=STREAMED if way == "streamed" else None)
    leaver = await start_peer(lambda request: body_of(request, LAYER, 300_000))
    liar = await start_peer(lambda request: body_of(request, bytes(len(LAYER))))
    honest = await start_peer(lambda request: body_of(request, LAYER))
    asker.router.knows(leaver.address, liar.address)
    if way == "held":
        # there is nobody who has it whole and right, and the liar is found out when it is asked alone
        assert (await get(asker, BLOB_PATH)).status_code == 404
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            await get(asker, BLOB_PATH)
    barred = [
        asker.mirror.peers.penalties.bars(Provider(f"peer{i}", each.address)) for i, each in enumerate((leaver, liar))
    ]
    assert barred == [False, way == "held"]
    # the next body of this digest is held, whatever its size, and comes from one peer alone
    asker.router.knows(leaver.address, liar.address, honest.address)
    response = await get(asker, BLOB_PATH)
    assert (response.status_code, response.content) == (200, LAYER)
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{honest.address[1]}"
    assert not asker.mirror.peers.penalties.bars(Provider("peer0", leaver.address))
    assert not asker.mirror.peers.penalties.bars(Provider("peer2", honest.address))


async def test_many_that_leave_and_lie_end_in_a_miss_not_in_a_loop(start_node: Any, start_peer: Any) -> None:
    asker = await start_node(settings=MirrorSettings(attempts=3))
    liars = [await start_peer(lambda request: body_of(request, bytes(len(LAYER)), 300_000)) for _ in range(4)]
    asker.router.knows(*(liar.address for liar in liars))
    with trio.fail_after(20):
        assert (await get(asker, BLOB_PATH)).status_code == 404
    assert sum(len(liar.requests) for liar in liars) <= 8


async def test_a_hash_that_this_node_could_not_make_is_nobodys_fault(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spegel_consul.zerocopy.hash_tap import Tap

    def fails(self: Tap) -> None:
        import os

        os.close(self._outlet)
        raise MemoryError

    monkeypatch.setattr(Tap, "_take_all", fails)
    peer = await start_peer(head(200, len(LAYER)), LAYER)
    for way in (None, STREAMED):
        asker = await start_node(settings=way)
        asker.router.knows(peer.address)
        try:
            assert (await get(asker, BLOB_PATH)).status_code in (200, 404)
        except httpx.RemoteProtocolError:
            pass
        assert not asker.mirror.peers.penalties.bars(Provider("peer0", peer.address))
        assert asker.metric("spegel_verification_failures_total") == 0
