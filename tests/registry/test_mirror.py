"""Content that comes from a peer: a real registry, or a script that misbehaves."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror import MirrorSettings
from spegel_consul.registry.peer import PeerClient, PeerResponse
from spegel_consul.ring import Provider
from spegel_consul.server import tap

from .conftest import head

LAYER = bytes(range(251)) * 9000
DIGEST = Digest.of(LAYER)
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(b"{}"), "size": 2, "mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [{"digest": DIGEST, "size": len(LAYER), "mediaType": "application/vnd.oci.image.layer.v1.tar"}],
    }
).encode()
MANIFEST_DIGEST = Digest.of(MANIFEST)
BLOB_PATH = f"/v2/library/app/blobs/{DIGEST}?ns=docker.io"
TAG_PATH = "/v2/library/app/manifests/v1?ns=docker.io"
NOT_FOUND = head(404, 0)
STREAMED = MirrorSettings(verify_first=0)


async def get(node: Any, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=node.url, trust_env=False, timeout=10) as client:
        return await client.request(method, path, headers=headers)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def pair(start_node: Any) -> Any:
    """A node that has the layer and a manifest, and one that knows only of the first."""
    holder, asker = await start_node(), await start_node()
    holder.store.add_content(LAYER)
    holder.store.add_content(b"{}")
    holder.store.add_image("docker.io/library/app:v1", MANIFEST)
    asker.router.knows(holder)
    return holder, asker


async def test_blob_and_manifest_come_from_the_neighbour(pair: Any) -> None:
    holder, asker = pair
    response = await get(asker, BLOB_PATH)
    assert response.status_code == 200
    assert response.content == LAYER
    assert response.headers["docker-content-digest"] == DIGEST
    assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    if asker.road is not None:
        assert (asker.road.taken, holder.road.taken) == (1, 1)
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
        ("bytes=0-", 206, 0, None),
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


async def test_credentials_of_the_client_are_not_passed_on(pair: Any, start_peer: Any) -> None:
    peer = await start_peer(NOT_FOUND)
    pair[1].router.knows(peer.address)
    await get(pair[1], BLOB_PATH, authorization="Basic dXNlcjpwYXNz", cookie="a=b")
    assert b"dXNlcjpwYXNz" not in peer.requests[0]
    assert b"a=b" not in peer.requests[0]


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


@pytest.mark.parametrize("then", ["close", "hang"])
async def test_a_transfer_goes_on_at_another_peer(pair: Any, start_peer: Any, then: str) -> None:
    holder, asker = pair
    dying = await start_peer(head(200, len(LAYER)), LAYER[:100_000], then=then)
    asker.router.knows(dying.address, holder)
    with trio.fail_after(4):
        response = await get(asker, BLOB_PATH)
    assert response.content == LAYER
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER) - 100_000


async def test_a_transfer_from_a_remembered_peer_asks_the_ring_when_that_peer_dies(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    dying = await start_peer(head(200, len(LAYER)), LAYER[:100_000], 0.4)
    asker.router.knows(dying.address)
    assert (await get(asker, BLOB_PATH, "HEAD")).status_code == 200  # from now on it is remembered
    asker.router.knows(dying.address, holder)
    with trio.fail_after(4):
        assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_a_range_goes_on_at_another_peer(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    size = len(LAYER)
    dying = await start_peer(head(206, size - 1000, f"Content-Range: bytes 1000-{size - 1}/{size}"), LAYER[1000:50_000])
    asker.router.knows(dying.address, holder)
    assert (await get(asker, BLOB_PATH, range="bytes=1000-")).content == LAYER[1000:]


async def test_wrong_bytes_are_never_completed(start_node: Any, start_peer: Any) -> None:
    node = await start_node(settings=STREAMED)
    wrong = bytes([LAYER[0] ^ 1]) + LAYER[1:]
    liar = await start_peer(head(200, len(LAYER), f"Docker-Content-Digest: {DIGEST}"), wrong)
    node.router.knows(liar.address)
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with httpx.AsyncClient(base_url=node.url, trust_env=False) as client:
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


@pytest.mark.parametrize("why", ["all threads hash", "no thread can be started"])
async def test_without_a_thread_the_hash_is_made_on_the_way(
    pair: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    holder, asker = pair
    if why == "all threads hash":
        monkeypatch.setattr(tap, "_threads", trio.CapacityLimiter(1))
        tap._threads.acquire_on_behalf_of_nowait(object())
    else:

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    borrowed = tap._threads.borrowed_tokens  # of earlier tests too, whose threads ended after their event loop
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    dying = await start_peer(head(200, len(LAYER)), LAYER[:400_000])
    asker.router.knows(dying.address, holder)
    asker.router.providers.reverse()
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert tap._threads.borrowed_tokens == borrowed


async def test_a_late_race_does_not_begin_with_the_peer_that_failed(
    start_node: Any, start_peer: Any, nursery: trio.Nursery
) -> None:
    holder, asker = await start_node(), await start_node(settings=MirrorSettings(attempts=1))
    holder.store.add_content(LAYER)
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        async with stream:
            while await stream.receive_some():
                served += 1
                await stream.send_all(head(200, len(LAYER)) + (LAYER if served == 1 else LAYER[:500_000]))
                if served > 1:
                    return

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    asker.router.knows(listeners[0].socket.getsockname())
    assert (await get(asker, BLOB_PATH)).content == LAYER
    asker.router.knows(holder)
    with trio.fail_after(5):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    nursery.cancel_scope.cancel()


async def test_a_transfer_that_nobody_can_complete_is_cut(start_node: Any, start_peer: Any) -> None:
    node = await start_node(settings=STREAMED)
    dying = await start_peer(head(200, len(LAYER)), LAYER[:1000])
    node.router.knows(dying.address)
    with pytest.raises(httpx.RemoteProtocolError), trio.fail_after(5):
        await get(node, BLOB_PATH)


async def test_a_lying_manifest_is_asked_elsewhere(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    liar = await start_peer(
        head(200, len(MANIFEST), f"Docker-Content-Digest: {MANIFEST_DIGEST}"), MANIFEST.replace(b"2", b"3", 1)
    )
    asker.router.knows(liar.address, holder)
    response = await get(asker, TAG_PATH)
    assert (response.status_code, response.content) == (200, MANIFEST)
    assert asker.metric("spegel_verification_failures_total") == 1


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


@pytest.mark.parametrize(
    "second",
    [
        (head(200, len(LAYER)), LAYER[:200_000]),
        (head(200, len(LAYER)), LAYER[:1], 60.0),
        (head(404, 0),),
        (0.5, head(200, len(LAYER)), LAYER),
        (60.0,),
        (),
        (b"what?\r\n\r\n",),
    ],
    ids=["dies", "stalls", "lost it", "is slow", "hangs", "closes", "babbles"],
)
async def test_a_peer_that_had_it_a_moment_ago_and_fails_over_the_same_connection(
    pair: Any, nursery: trio.Nursery, second: tuple[bytes | float, ...]
) -> None:
    holder, asker = pair
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        parts: tuple[bytes | float, ...] = (head(200, len(LAYER)), LAYER)
        async with stream:
            while await stream.receive_some():
                try:
                    for part in parts:
                        if isinstance(part, bytes):
                            await stream.send_all(part)
                        else:
                            await trio.sleep(part)
                except trio.BrokenResourceError:
                    return
                if parts is second:
                    return
                parts = second

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    asker.router.knows(listeners[0].socket.getsockname())
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert connections == 1
    asker.router.knows(listeners[0].socket.getsockname(), holder)
    with trio.fail_after(5):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    if asker.road is not None:
        assert asker.road.taken == 2
    nursery.cancel_scope.cancel()


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


async def test_connections_to_peers_are_kept_and_stale_ones_replaced(pair: Any, start_node: Any) -> None:
    holder, asker = pair
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    holder.stop.set()
    again = await start_node()
    again.store.add_content(LAYER)
    asker.router.providers = [Provider("old", holder.address), Provider("new", again.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_an_answer_that_comes_too_late_is_not_used_for_other_bytes(
    pair: Any, start_peer: Any, start_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers in the same instant: the second one can't be cancelled any more, and is for bytes that were sent."""
    holder, _ = pair
    size = len(LAYER)
    asker = await start_node(settings=MirrorSettings(hedge=0.0))
    dying = await start_peer(head(206, size - 1000, f"Content-Range: bytes 1000-{size - 1}/{size}"), LAYER[1000:5000])
    asker.router.knows(dying.address, holder)
    request, arrived, gates = PeerClient.request, [], {dying.address: trio.Event(), holder.address: trio.Event()}

    async def gated(self: PeerClient, address: tuple[str, int], *rest: Any) -> PeerResponse:
        response = await request(self, address, *rest)
        gate = gates.get(address)
        if gate is not None:
            arrived.append(address)
            await gate.wait()
        return response

    monkeypatch.setattr(PeerClient, "request", gated)
    async with trio.open_nursery() as nursery:

        async def open_gates() -> None:
            with trio.fail_after(5):
                while len(arrived) < 2:
                    await trio.sleep(0.001)
            first, second = gates[dying.address], gates[holder.address]
            gates.clear()
            first.set()
            await trio.lowlevel.checkpoint()
            second.set()

        nursery.start_soon(open_gates)
        response = await get(asker, BLOB_PATH, range="bytes=1000-")
    assert response.content == LAYER[1000:]


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


async def test_labels_of_metrics_are_bounded(start_node: Any) -> None:
    node = await start_node()
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as client:
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
