"""Blobs that are held until they are verified: wrong bytes cost a question to somebody else, not a pull."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import spool

from ...conftest import head, open_files
from ...image import BLOB_PATH, DIGEST, LAYER, get

WRONG = bytes([LAYER[0] ^ 1]) + LAYER[1:]


def results(node: Any) -> dict[str, float]:
    names = ("verified", "late", "full", "busy", "failed")
    found = {name: node.metric("spegel_verify_first_total", {"result": name}) for name in names}
    return {name: count for name, count in found.items() if count}


async def test_a_lie_that_nobody_corrects_is_not_sent_at_all(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    liar = await start_peer(head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), WRONG)
    node.router.knows(liar.address)
    assert (await get(node, BLOB_PATH)).status_code == 404
    assert node.metric("spegel_verification_failures_total") == 1
    assert node.metric("spegel_transfers_cut_total") == 0
    assert node.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "miss"}) == 1
    assert results(node) == {"failed": 1}
    assert (await get(node, BLOB_PATH)).status_code == 404
    assert len(liar.requests) == 1


async def test_another_peer_corrects_it(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    liars = [await start_peer(head(200, len(LAYER)), WRONG) for _ in range(2)]
    asker.router.knows(*(liar.address for liar in liars), holder)
    for _ in range(2):
        response = await get(asker, BLOB_PATH)
        assert response.content == LAYER
        assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    assert [len(liar.requests) for liar in liars] == [1, 1]
    assert asker.metric("spegel_verification_failures_total") == 2
    assert results(asker) == {"verified": 2}


async def test_who_completes_the_junk_of_another_is_asked_again(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    evil = await start_peer(head(200, len(LAYER)), bytes(300_000))
    asker.router.knows(evil.address, holder)
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_verification_failures_total") == 1
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == 2 * len(LAYER) - 300_000
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert len(evil.requests) == 1


async def test_what_can_not_be_had_to_its_end_is_not_begun(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    dying = await start_peer(head(200, len(LAYER)), LAYER[:-1])
    node.router.knows(dying.address)
    assert (await get(node, BLOB_PATH)).status_code == 404
    assert results(node) == {"failed": 1}


@pytest.mark.parametrize("body", [LAYER, WRONG], ids=["right", "wrong"])
async def test_a_slow_peer_is_streamed_after_a_while(start_node: Any, start_peer: Any, body: bytes) -> None:
    node = await start_node(settings=MirrorSettings(hold=0.4))
    slow = await start_peer(head(200, len(LAYER)), body[:400_000], 0.3, body[400_000:900_000], 0.3, body[900_000:])
    node.router.knows(slow.address)
    if body == LAYER:
        assert (await get(node, BLOB_PATH)).content == LAYER
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            await get(node, BLOB_PATH)
    assert len(slow.requests) == 1
    assert results(node) == {"late": 1}
    assert node.metric("spegel_transfers_cut_total") == (body == WRONG)


@pytest.fixture
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
async def test_a_file_that_stops_taking_bytes_loses_none(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(head(200, len(LAYER)), LAYER)
    node.router.knows(peer.address)
    before = open_files()
    assert (await get(node, BLOB_PATH)).content == LAYER
    assert results(node) in ({"full": 1}, {"verified": 1})  # what the file does not take may be all that is left
    assert len(peer.requests) == 1
    with trio.fail_after(5):
        while open_files() > before + 3:  # a connection, and a pipe that is kept
            await trio.sleep(0.01)


async def test_without_room_it_is_streamed(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, asker = pair
    # a body that fits into the pipe may have come whole before its file is found to be full, and is verified then
    body = LAYER * 4
    path = f"/v2/library/app/blobs/{holder.store.add_content(body)}?ns=docker.io"
    monkeypatch.setattr(spool, "_unnamed", lambda _: os.open("/dev/full", os.O_RDWR))
    assert (await get(asker, path)).content == body
    monkeypatch.setattr(spool, "_SHARE", 1 << 50)
    assert (await get(asker, path)).content == body
    assert results(asker) == {"full": 2}


async def test_without_a_directory_memory_holds_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(spool.tempfile, "gettempdir", nowhere)
    space = spool.SpoolSpace(None)
    space.promised = spool._IN_MEMORY
    os.close(space.open(spool.OWN))
    space.promised += 1
    with pytest.raises(OSError, match="No space left"):
        space.open(spool.OWN)


async def test_a_client_that_leaves_ends_it(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(head(200, len(LAYER)), *([LAYER[:50_000], 0.2] * 20), then="hang")
    node.router.knows(peer.address)
    before = open_files()
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        await stream.send_all(f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await trio.sleep(0.3)
        assert open_files() > before
    with trio.fail_after(3):  # the peer would go on for four seconds
        while open_files() > before:
            await trio.sleep(0.01)


@pytest.mark.parametrize(("limit", "held"), [(len(LAYER), {"verified": 1}), (len(LAYER) - 1, {}), (0, {})])
async def test_the_limit(start_node: Any, limit: int, held: dict[str, float]) -> None:
    holder, asker = await start_node(), await start_node(settings=MirrorSettings(verify_first=limit))
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert (await get(asker, BLOB_PATH, range="bytes=1-")).content == LAYER[1:]
    assert results(asker) == held
