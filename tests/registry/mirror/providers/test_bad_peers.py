"""Peers that answer with nonsense, with lies or too late are passed over, and never believed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest
import trio

from ...conftest import NOT_FOUND, head, open_files
from ...image import BLOB_PATH, DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST, STREAMED, TAG_PATH, get


@pytest.mark.parametrize(
    "script",
    [
        (NOT_FOUND,),
        (head(500, 0),),
        (b"garbage\r\n\r\n",),
        (),
        (head(200, len(LAYER), "Docker-Content-Digest: sha256:" + "00" * 32),),
        (b"HTTP/1.1 200 OK\r\n\r\n",),
        (head(206, 10, "Content-Range: bytes 0-9/10"),),
        (head(301, 0, "Location: http://169.254.169.254/"),),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,),
    ],
    ids=["404", "500", "garbage", "closes", "other-digest", "no-length", "unasked-range", "redirect", "big-head"],
)
async def test_a_bad_peer_is_passed_over(pair: Any, start_peer: Any, script: tuple[bytes, ...]) -> None:
    holder, asker = pair
    bad = await start_peer(*script)
    asker.router.knows(bad.address, holder)
    response = await get(asker, BLOB_PATH)
    assert (response.status_code, response.content) == (200, LAYER)
    assert b"x-spegel-mirrored: true" in bad.requests[0].lower()
    assert b"authorization" not in bad.requests[0].lower()


async def test_refused_and_silent_peers_are_passed_over(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    silent = await start_peer(then="hang")
    asker.router.knows(("127.0.0.1", 1), silent.address, holder)
    with trio.fail_after(2):
        assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_only_bad_peers_mean_not_found_soon(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    silent = [await start_peer(then="hang") for _ in range(3)]
    node.router.knows(*(peer.address for peer in silent))
    started = trio.current_time()
    assert (await get(node, BLOB_PATH)).status_code == 404
    assert trio.current_time() - started < 2


async def test_wrong_bytes_are_never_completed(start_node: Any, start_peer: Any) -> None:
    node = await start_node(settings=STREAMED)
    wrong = bytes([LAYER[0] ^ 1]) + LAYER[1:]
    liar = await start_peer(head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), wrong)
    node.router.knows(liar.address)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False) as client:
            async with client.stream("GET", BLOB_PATH) as response:
                async for chunk in response.aiter_raw():
                    received += chunk
    assert len(received) < len(LAYER)
    assert node.metric("spegel_verification_failures_total") == 1
    assert node.metric("spegel_transfers_cut_total") == 1
    assert (await get(node, "/v2/")).status_code == 200


async def test_who_sends_junk_and_leaves_is_blamed_not_who_completes_it(start_node: Any, start_peer: Any) -> None:
    holder, asker = await start_node(), await start_node(settings=STREAMED)
    holder.store.add_content(LAYER)
    evil = await start_peer(head(200, len(LAYER)), bytes(300_000))
    asker.router.knows(evil.address, holder)
    with pytest.raises(httpx.RemoteProtocolError):
        await get(asker, BLOB_PATH)
    assert asker.metric("spegel_verification_failures_total") == 1
    assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_a_lying_manifest_is_asked_elsewhere(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    liar = await start_peer(
        head(200, len(MANIFEST), f"Docker-Content-Digest: {MANIFEST_DIGEST}"), MANIFEST.replace(b"2", b"3", 1)
    )
    asker.router.knows(liar.address, holder)
    response = await get(asker, TAG_PATH)
    assert (response.status_code, response.content) == (200, MANIFEST)
    assert asker.metric("spegel_verification_failures_total") == 1


async def test_a_small_lying_blob_is_asked_elsewhere(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    small = b"a small layer"
    digest = holder.store.add_content(small)
    liar = await start_peer(head(200, len(small)), b"A" + small[1:])
    asker.router.knows(liar.address, holder)
    response = await get(asker, f"/v2/library/app/blobs/{digest}?ns=docker.io")
    assert (response.status_code, response.content) == (200, small)
    assert asker.metric("spegel_verification_failures_total") == 1
    assert asker.metric("spegel_transfers_cut_total") == 0


async def test_bad_peers_leave_no_connection_behind(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    scripts: list[tuple[bytes | float, ...]] = [
        (head(200, len(LAYER)), LAYER, b"and more"),
        (head(200, len(LAYER)), LAYER[:-1]),
        (head(206, 10, f"Content-Range: bytes 5-14/{len(LAYER)}"), LAYER[5:15]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",),
        (head(302, 0, "Location: http://127.0.0.1:1/"),),
        (head(500, 3), b"no!"),
        (0.7, head(200, 0)),
    ]
    peers = [await start_peer(*script) for script in scripts]
    await get(node, BLOB_PATH)
    await trio.sleep(0.2)
    before = open_files()
    for peer in peers * 2:
        node.router.knows(peer.address)
        for wanted in ({}, {"range": "bytes=5-"}):
            with suppress(httpx.RemoteProtocolError):
                await get(node, BLOB_PATH, **wanted)
    with trio.fail_after(5):
        # one that was read to its end is kept for each
        while open_files() > before + len(peers):
            await trio.sleep(0.05)


async def test_a_range_that_nobody_asked_for_is_not_passed_on(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    other = await start_peer(head(206, 10, f"Content-Range: bytes 0-9/{len(LAYER)}"), LAYER[:10])
    asker.router.knows(other.address, holder)
    response = await get(asker, BLOB_PATH, range="bytes=100-109")
    assert (response.status_code, response.content) == (206, LAYER[100:110])


async def test_one_peers_refusal_of_a_range_is_not_the_last_word(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    wrong = await start_peer(head(416, 0, "Content-Range: bytes */5"))
    asker.router.knows(wrong.address, holder)
    response = await get(asker, BLOB_PATH, range="bytes=100-109")
    assert (response.status_code, response.content) == (206, LAYER[100:110])


async def test_a_peer_that_drips_its_head_is_passed_over(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    drips: list[bytes | float] = [b"HTTP/1.1 200 OK\r\n"]
    for number in range(100):
        drips += [0.1, b"X-%d: y\r\n" % number]
    slow = await start_peer(*drips, then="hang")
    asker.router.knows(slow.address)
    started = trio.current_time()
    assert (await get(asker, BLOB_PATH)).status_code == 404
    assert trio.current_time() - started < 1.5
    asker.router.knows(holder)
    assert (await get(asker, BLOB_PATH)).content == LAYER
