"""Content that comes from a peer: a real registry, or a script."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import hash_tap

from ..conftest import NOT_FOUND, head
from ..image import BLOB_PATH, DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST, TAG_PATH, get


async def test_blob_and_manifest_come_from_the_neighbour(pair: Any) -> None:
    holder, asker = pair
    response = await get(asker, BLOB_PATH)
    assert response.status_code == 200
    assert response.content == LAYER
    assert response.headers["docker-content-digest"] == DIGEST
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    if asker.fast_path is not None:
        assert (asker.fast_path.taken, holder.fast_path.taken) == (1, 1)
    for path in (TAG_PATH, f"/v2/library/app/manifests/{MANIFEST_DIGEST}?ns=docker.io"):
        response = await get(asker, path)
        assert (response.status_code, response.content) == (200, MANIFEST)
        assert response.headers["content-type"] == OCI_MANIFEST
        only_head = await get(asker, path, "HEAD")
        assert only_head.headers["docker-content-digest"] == MANIFEST_DIGEST
        assert only_head.headers["content-length"] == str(len(MANIFEST))
    assert holder.router.asked == []
    with trio.fail_after(5):  # counted after the last byte has left
        while asker.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "hit"}) != 5:
            await trio.sleep(0.01)
    assert asker.metric("spegel_served_bytes_total", {"source": "peer"}) == len(LAYER) + 2 * len(MANIFEST)
    # a manifest is had whole for HEAD too: what it is stands in it
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER) + 4 * len(MANIFEST)


@pytest.mark.parametrize(
    ("wanted", "status", "start", "stop"),
    [
        (f"bytes=0-{len(LAYER) - 1}", 206, 0, None),
        ("bytes=1000-", 206, 1000, None),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=-8", 206, -8, None),
    ],
)
async def test_ranges_go_through(pair: Any, wanted: str, status: int, start: int, stop: int | None) -> None:
    response = await get(pair[1], BLOB_PATH, range=wanted)
    assert response.status_code == status
    assert response.content == LAYER[start:stop]
    assert response.headers["content-range"].endswith(f"/{len(LAYER)}")


async def test_a_range_beyond_the_end(pair: Any) -> None:
    response = await get(pair[1], BLOB_PATH, range=f"bytes={len(LAYER)}-")
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(LAYER)}"


async def test_nobody_has_it(start_node: Any) -> None:
    node = await start_node()
    started = trio.current_time()
    response = await get(node, BLOB_PATH)
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == "BLOB_UNKNOWN"
    assert trio.current_time() - started < 1
    assert node.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "miss"}) == 1


async def test_a_lookup_that_hangs_is_given_up(start_node: Any) -> None:
    node = await start_node(settings=MirrorSettings(resolve_timeout=0.1))
    node.router.providers = [None]
    with trio.fail_after(2):
        assert (await get(node, TAG_PATH)).json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"


async def test_credentials_of_the_client_are_not_passed_on(pair: Any, start_peer: Any) -> None:
    peer = await start_peer(NOT_FOUND)
    pair[1].router.knows(peer.address)
    await get(pair[1], BLOB_PATH, authorization="Basic dXNlcjpwYXNz", cookie="a=b")
    assert b"dXNlcjpwYXNz" not in peer.requests[0]
    assert b"a=b" not in peer.requests[0]


@pytest.mark.parametrize("why", ["all threads hash", "no thread can be started"])
async def test_without_a_thread_the_hash_is_made_on_the_way(
    pair: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    holder, asker = pair
    if why == "all threads hash":
        monkeypatch.setattr(hash_tap, "_threads", trio.CapacityLimiter(1))
        hash_tap._threads.acquire_on_behalf_of_nowait(object())
    else:

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    borrowed = hash_tap._threads.borrowed_tokens  # of earlier tests too, whose threads ended after their event loop
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    dying = await start_peer(head(200, len(LAYER)), LAYER[:400_000])
    asker.router.knows(dying.address, holder)
    asker.router.providers.reverse()
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert hash_tap._threads.borrowed_tokens == borrowed


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_what_identifies_a_request_goes_to_the_peer_and_nothing_else_does(
    start_node: Any, start_peer: Any
) -> None:
    node = await start_node()
    peer = await start_peer(head(200, len(LAYER)), LAYER)
    node.router.knows(peer.address)
    given = {"x-request-id": "pull-7", "traceparent": TRACEPARENT, "cookie": "secret", "authorization": "Basic eA=="}
    assert (await get(node, BLOB_PATH, **given)).content == LAYER
    asked = peer.requests[0].lower()
    assert b"\r\nx-request-id: pull-7\r\n" in asked
    assert f"\r\ntraceparent: {TRACEPARENT}\r\n".encode() in asked
    assert b"secret" not in asked
    assert b"authorization" not in asked


async def test_identities_that_are_malformed_stay_here(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(head(200, len(LAYER)), LAYER)
    node.router.knows(peer.address)
    given = {"x-request-id": "a b\tc" + "x" * 300, "traceparent": TRACEPARENT + "-extra"}
    assert (await get(node, BLOB_PATH, **given)).content == LAYER
    assert b"x-request-id" not in peer.requests[0].lower()
    assert b"traceparent" not in peer.requests[0].lower()


async def test_labels_of_metrics_are_bounded(start_node: Any) -> None:
    node = await start_node()
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False) as client:
        for number in range(150):
            await client.get(f"/v2/app/manifests/v1?ns=r{number}.example.com")
            await client.request(f"M{number}", "/v2/app/manifests/v1")
    names = {
        (sample.labels.get("registry"), sample.labels.get("method"))
        for metric in node.metrics.registry.collect()
        for sample in metric.samples
    }
    assert len(names) < 120
    assert node.metric("spegel_mirror_requests_total", {"registry": "other", "cache": "miss"}) == 50


async def test_a_client_that_leaves_ends_the_transfer(start_node: Any, start_peer: Any) -> None:
    node = await start_node()
    peer = await start_peer(head(200, 1 << 30), bytes(1 << 20), then="hang")
    node.router.knows(peer.address)
    stream = await trio.open_tcp_stream(*node.address)
    async with stream:
        await stream.send_all(f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await stream.receive_some(1000)
    assert (await get(node, "/v2/")).status_code == 200
