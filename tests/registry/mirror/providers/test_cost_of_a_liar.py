"""Failed pulls that one liar among three nodes costs, with ``--verify=on`` and with ``auto``, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spegel_consul.http.peer_client import PeerLimits, PeerResponse
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import OCIError
from spegel_consul.oci.path import parse_content_path
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror import mirror_peers
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorSettings
from spegel_consul.zerocopy.outlet import PieceOutlet
from spegel_consul.zerocopy.source import Throughput

from ...conftest import InOrder, ListRouter

SIZE, LAYERS, AT_ONCE = 40, 4, 3
PROVIDERS = [Provider(f"peer{i}", ("10.0.0.1", 1000 + i)) for i in range(3)]
LIAR = PROVIDERS[0].registry
GAP = 60.0
RETRY = 15.0


class Response(PeerResponse):
    """A blob that takes some time, from ``start`` on."""

    encrypted = True
    source = None  # so the bytes pass through this process

    def __init__(self, content: bytes, digest: str, start: int) -> None:
        self._rest = content[start:]
        self.connected = 0.0
        self.status = 206 if start else 200
        self._fields = {b"content-length": str(SIZE - start), b"docker-content-digest": digest}
        if start:
            self._fields[b"content-range"] = f"bytes {start}-{SIZE - 1}/{SIZE}"

    def header(self, name: bytes) -> str | None:
        return self._fields.get(name)

    async def chunks(self, throughput: Throughput | None = None) -> AsyncGenerator[bytes, None]:
        while piece := self._rest[:7]:
            await trio.sleep(0.01)
            self._rest = self._rest[7:]
            yield piece

    def discard(self) -> None:
        pass


class Node:
    """A mirror, and a runtime that verifies each layer and asks upstream for what the mirror does not have."""

    def __init__(self, seed: int, settings: MirrorSettings) -> None:
        self.rng = random.Random(seed)
        self.contents: dict[str, bytes] = {}
        self.mirror = Mirror(MirrorParts(self, self, Metrics(), settings, rng=InOrder(0)))  # type: ignore[arg-type]

    limits = PeerLimits()

    def lookup(self, key: str, *, count: int = 3) -> AbstractContextManager[Any]:
        router = ListRouter()
        router.providers = [*self.rng.sample(PROVIDERS, 3)]
        return router.lookup(key, count=count)

    async def request(
        self, address: tuple[str, int], method: str, target: str, headers: list[tuple[str, str]], **_: float | None
    ) -> PeerResponse:
        await trio.sleep(0.001)
        start = int(dict(headers).get("range", "bytes=0-")[6:].split("-")[0])
        digest = target.split("blobs/")[1].split("?")[0]
        content = self.contents[digest]
        return Response(bytes(SIZE) if address == LIAR else content, digest, start)

    async def layer(self, digest: str, slots: trio.Semaphore, results: dict[str, bool]) -> None:
        received = b""

        async def take(piece: bytes) -> None:
            nonlocal received
            received += piece

        request = parse_content_path(f"/v2/library/app/blobs/{digest}", "ns=docker.io")
        async with slots:
            with self.mirror.begin(request, "GET") as trace:
                try:
                    async with self.mirror.open(request, "GET", None, trace) as transfer:
                        await transfer.hold()
                        await transfer.send(PieceOutlet(take))
                except TransferCut:
                    pass
                except OCIError:
                    received = self.contents[digest]  # from upstream
        results[digest] = received == self.contents[digest]

    async def pull(self, *, again: bool) -> int:
        """Pull a new image; return how often that failed until it succeeded, or once if it is not tried again."""
        missing = set()
        for _ in range(LAYERS):
            content = self.rng.randbytes(SIZE)
            missing.add(Digest.of(content))
            self.contents[Digest.of(content)] = content
        for failed in range(20):
            results: dict[str, bool] = {}
            async with trio.open_nursery() as nursery:
                slots = trio.Semaphore(AT_ONCE)
                for digest in sorted(missing):
                    nursery.start_soon(self.layer, digest, slots, results)
            right = {digest for digest, is_right in results.items() if is_right}
            self.mirror.peers.unverified.arrived(right)
            missing -= right
            if not missing:
                return failed
            if not again:
                return 1
            await trio.sleep(RETRY)
        raise AssertionError("the image can't be pulled at all")


def failed_pulls(settings: MirrorSettings, *, again: bool) -> float:
    """The mean number of failed pulls of 10 images, one a minute."""

    async def run(seed: int) -> int:
        node, failed = Node(seed, settings), 0
        for _ in range(10):
            failed += await node.pull(again=again)
            await trio.sleep(GAP)
        return failed

    return sum(trio.run(run, seed, clock=trio.testing.MockClock(autojump_threshold=0)) for seed in range(4)) / 4


def test_a_liar_costs_little_more_with_auto_if_failed_pulls_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And much more if they are not, because nothing is learnt then. So ``on`` is the default."""
    monkeypatch.setattr(mirror_peers, "SMALL", 0)
    on, auto = MirrorSettings(verify_first=0), MirrorSettings(verify_first=0, runtime_verifies=True)
    usual = failed_pulls(on, again=True)
    assert 1 <= usual <= 3
    assert failed_pulls(auto, again=True) <= usual + 2
    assert failed_pulls(auto, again=False) > 2 * failed_pulls(on, again=False)
