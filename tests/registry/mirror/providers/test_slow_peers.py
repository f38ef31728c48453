"""A peer that is slow and steady: the rest comes from somebody else, if there is somebody."""

from __future__ import annotations

from typing import Any

import pytest

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import source

from ...conftest import head
from ..test_mirror import DIGEST, LAYER, get

PIECE = 50_000
STEADY = [part for start in range(0, len(LAYER), PIECE) for part in (LAYER[start : start + PIECE], 0.05)]
SETTINGS = {"held": MirrorSettings(), "streamed": MirrorSettings(verify_first=0)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "SLOW_AFTER", 0.3)


@pytest.mark.parametrize("way", SETTINGS)
async def test_the_rest_comes_from_another(start_node: Any, start_peer: Any, way: str) -> None:
    holder, asker = await start_node(), await start_node(settings=SETTINGS[way])
    path = f"/v2/library/app/blobs/{holder.store.add_content(LAYER)}?ns=docker.io"
    slow = await start_peer(head(200, len(LAYER)), *STEADY)
    provider = Provider("peer0", slow.address)
    asker.router.knows(slow.address, holder)
    assert (await get(asker, path)).content == LAYER
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) > len(LAYER) / 2
    assert asker.mirror.peers.penalties.is_slow(provider)
    assert not asker.mirror.peers.penalties.bars(provider)
    # the next time others are asked first, and it is not asked at all
    response = await get(asker, path)
    assert (response.content, len(slow.requests)) == (LAYER, 1)
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"


@pytest.mark.parametrize("way", SETTINGS)
async def test_it_goes_on_if_there_is_nobody_else(start_node: Any, start_peer: Any, way: str) -> None:
    asker = await start_node(settings=SETTINGS[way])
    slow = await start_peer(head(200, len(LAYER)), *STEADY)
    dead = await start_peer(head(503, 0))
    also_slow = await start_peer(head(200, len(LAYER)), *STEADY)
    asker.mirror.peers.penalties.slow(Provider("peer2", also_slow.address))
    asker.router.knows(slow.address, dead.address, also_slow.address)
    assert (await get(asker, f"/v2/library/app/blobs/{DIGEST}?ns=docker.io")).content == LAYER
    assert (len(slow.requests), len(dead.requests), len(also_slow.requests)) == (1, 1, 0)


async def test_the_slow_one_goes_on_when_the_fast_one_dies(start_node: Any, start_peer: Any) -> None:
    asker = await start_node()
    size = len(LAYER)

    def rest(request: bytes) -> tuple[bytes, bytes]:
        start = int(request.split(b"range: bytes=")[1].split(b"-")[0])
        return head(206, size - start, f"Content-Range: bytes {start}-{size - 1}/{size}"), LAYER[start:]

    def whole_then_rest(request: bytes) -> list[bytes | float]:
        return [*rest(request)] if b"range: " in request else [head(200, size), *STEADY]

    def a_part_of_the_rest(request: bytes) -> list[bytes | float]:
        answer, part = rest(request)
        return [answer, part[:100_000]]

    slow, fast = await start_peer(whole_then_rest), await start_peer(a_part_of_the_rest)
    asker.router.knows(slow.address, fast.address)
    assert (await get(asker, f"/v2/library/app/blobs/{DIGEST}?ns=docker.io")).content == LAYER
    assert (len(slow.requests), len(fast.requests)) == (2, 1)
