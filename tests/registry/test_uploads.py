"""Bodies that a node sends to peers: their number is told, and more than --max-upload are refused."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import Busy
from spegel_consul.registry.mirror import fetch
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.hedging import BUSY_PATIENCE
from spegel_consul.registry.uploads import SHARE, Upload, Uploads

from .conftest import ASKER, head
from .image import BLOB_PATH, LAYER, MANIFEST, STREAMED, TAG_PATH, get

PEER = {"x-spegel-mirrored": "true"}


async def ended(uploads: Uploads, streams: int = 0) -> None:
    """Wait until no other bodies are counted, because a client has the last byte before the server has counted it."""
    with trio.fail_after(10):
        while uploads.streams != streams:
            await trio.sleep(0.01)


def test_bodies_are_counted_and_refused() -> None:
    core = Uploads(2)
    with core.one(Upload.BODY), core.one(Upload.FOLLOWED), core.one(Upload.SMALL), core.one(Upload.NONE):
        assert core.streams == 2
        with pytest.raises(Busy) as caught, core.one(Upload.BODY):
            pass
        assert 0 < caught.value.seconds <= 5
        with core.one(Upload.FOLLOWED):
            assert core.streams == 3, "followers are counted, but never refused"
    assert core.to_json() == {"streams": 0, "most": 2, "refused": 1, "rate": None}


def test_the_hint_grows_with_the_time_that_a_body_takes() -> None:
    hints = []
    for lasts in (0.001, 4.0, 1e6):
        core = Uploads(2)
        for _ in range(50):
            core.enter(Upload.BODY)
            core.leave(lasts)
        core.streams = 2
        with pytest.raises(Busy) as caught:
            core.enter(Upload.BODY)
        hints.append(caught.value.seconds)
    assert hints == [0.25, pytest.approx(2.0, rel=0.01), 5.0]


async def test_a_full_node_refuses_peers_large_bodies_only(start_node: Any) -> None:
    uploads = Uploads(1)
    holder = await start_node(uploads=uploads)
    holder.store.add_content(LAYER)
    holder.store.add_image("docker.io/library/app:v1", MANIFEST)
    small = f"/v2/library/app/blobs/{holder.store.add_content(b'{}')}?ns=docker.io"
    with uploads.one(Upload.BODY):
        for _ in range(2):  # the second request is one that the fast path remembers
            refused = await get(holder, BLOB_PATH, **PEER)
            assert (refused.status_code, refused.headers["x-spegel-busy"]) == (503, "1.00")
            assert refused.json()["errors"][0]["code"] == "TOOMANYREQUESTS"
            part = await get(holder, BLOB_PATH, **PEER, range="bytes=0-99999")
            assert part.status_code == 503
            parts = await get(holder, BLOB_PATH, **PEER, range="bytes=0-70000,80000-170000")
            assert parts.status_code == 503
        for path, headers in (
            (BLOB_PATH, {}),
            (TAG_PATH, PEER),
            (small, PEER),
            (BLOB_PATH, {**PEER, "range": "bytes=0-9"}),
        ):
            assert (await get(holder, path, **headers)).status_code in (200, 206)
        assert (await get(holder, BLOB_PATH, "HEAD", **PEER)).status_code == 200
        followed = await get(holder, BLOB_PATH, **PEER, **{"x-spegel-follow": ASKER})
        assert followed.content == LAYER
    assert uploads.refused == 6
    await ended(uploads)
    assert (await get(holder, BLOB_PATH, **PEER)).content == LAYER
    labels = {"handler": "/v2/*", "method": "GET", "code": "503"}
    assert holder.metric("http_request_duration_seconds_count", labels) == 6


async def test_a_peer_is_told_the_load_and_other_clients_are_not(start_node: Any) -> None:
    uploads = Uploads()
    holder = await start_node(uploads=uploads)
    holder.store.add_content(LAYER)
    holder.store.add_content(b"{}")
    holder.store.add_image("docker.io/library/app:v1", MANIFEST)
    with ExitStack() as stack:
        for load in range(2):
            for _ in range(2):
                for path, own in ((BLOB_PATH, 1), (TAG_PATH, 0)):
                    await ended(uploads, load)
                    told = await get(holder, path, **PEER)
                    assert told.status_code == 200, told.text
                    assert told.headers["x-spegel-load"] == str(load + own)
                    assert "x-spegel-load" not in (await get(holder, path)).headers
                await ended(uploads, load)
                parts = await get(holder, BLOB_PATH, **PEER, range="bytes=0-70000,80000-170000")
                assert (parts.status_code, parts.headers["x-spegel-load"]) == (206, str(load + 1))
                await ended(uploads, load)
                assert (await get(holder, BLOB_PATH, "HEAD", **PEER)).headers["x-spegel-load"] == str(load)
            stack.enter_context(uploads.one(Upload.BODY))
    await ended(uploads)


@pytest.mark.parametrize("settings", [None, STREAMED])
async def test_the_next_provider_is_asked_and_the_busy_one_gets_no_penalty(start_node: Any, settings: Any) -> None:
    uploads = Uploads(1)
    full, free, asker = await start_node(uploads=uploads), await start_node(), await start_node(settings=settings)
    for holder in (full, free):
        holder.store.add_content(LAYER)
    asker.router.knows(full, free)
    with uploads.one(Upload.BODY):
        answer = await get(asker, BLOB_PATH)
    assert answer.content == LAYER
    assert answer.headers["x-spegel-served-by"] == f"127.0.0.1:{free.address[1]}"
    assert asker.metric("spegel_busy_peers_total") == uploads.refused == 1
    assert asker.mirror.peers.may_ask(asker.router.providers[0])
    assert not asker.mirror.peers.penalties.is_slow(asker.router.providers[0])


async def test_a_busy_provider_is_waited_for_if_there_is_no_other(start_node: Any, nursery: trio.Nursery) -> None:
    uploads = Uploads(1)
    full, asker = await start_node(uploads=uploads), await start_node()
    full.store.add_content(LAYER)
    asker.router.knows(full)

    async def be_busy() -> None:
        with uploads.one(Upload.BODY):
            await trio.sleep(0.6)

    nursery.start_soon(be_busy)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert 0.6 <= trio.current_time() - began < BUSY_PATIENCE
    assert uploads.refused >= 1
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert asker.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "hit"}) == 1


async def test_a_client_goes_upstream_if_all_stay_busy(start_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BUSY_PATIENCE", 1.0)
    uploads = Uploads(1)
    full, asker = await start_node(uploads=uploads), await start_node()
    full.store.add_content(LAYER)
    asker.router.knows(full)
    began = trio.current_time()
    with uploads.one(Upload.BODY):
        answer = await get(asker, BLOB_PATH)
    assert answer.status_code == 404
    assert "busy" in answer.text
    assert trio.current_time() - began < 2.0


async def test_a_registry_that_answers_503_without_a_hint_is_not_waited_for(start_node: Any, start_peer: Any) -> None:
    asker = await start_node()
    failing = await start_peer(head(503, 0))
    asker.router.knows(failing.address)
    began = trio.current_time()
    assert (await get(asker, BLOB_PATH)).status_code == 404
    assert trio.current_time() - began < 1.0
    assert asker.metric("spegel_busy_peers_total") == 0


async def test_of_two_the_less_loaded_one_is_asked(start_node: Any) -> None:
    uploads = Uploads()
    loaded, free, asker = await start_node(uploads=uploads), await start_node(), await start_node()
    blobs = [bytes([number]) * 2_000_000 for number in range(4)]
    paths = []
    for content in blobs:
        for holder in (loaded, free):
            holder.store.add_content(content)
        paths.append(f"/v2/library/app/blobs/{Digest.of(content)}?ns=docker.io")
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(uploads.one(Upload.BODY))
        served = []
        for path, order in zip(paths, ((loaded, free), (free, loaded), (loaded, free), (loaded, free)), strict=True):
            asker.router.knows(*order)
            served.append((await get(asker, path)).headers["x-spegel-served-by"])
    first, second = (f"127.0.0.1:{each.address[1]}" for each in (loaded, free))
    assert served == [first, second, second, second], "its load is known from the first answers"


async def test_a_body_that_fails_half_way_is_no_longer_counted(start_node: Any) -> None:
    uploads = Uploads(1)
    holder = await start_node(uploads=uploads)
    large = bytes(16 << 20)
    path = f"/v2/library/app/blobs/{holder.store.add_content(large)}?ns=docker.io"
    stream = await trio.open_tcp_stream(*holder.address)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: peer\r\nx-spegel-mirrored: true\r\n\r\n".encode())
    await stream.receive_some(1)
    assert uploads.streams == 1
    await stream.aclose()
    await ended(uploads)


async def test_peers_get_bodies_at_the_limit_and_own_clients_at_once(start_node: Any) -> None:
    uploads = Uploads(rate=2 * len(LAYER))
    holder = await start_node(uploads=uploads)
    holder.store.add_content(LAYER)
    await get(holder, BLOB_PATH)
    for headers, lasts in (({}, 0.0), (PEER, 0.5), ({**PEER, "range": "bytes=0-999999"}, 0.22), ({}, 0.0)):
        began = trio.current_time()
        assert (await get(holder, BLOB_PATH, **headers)).is_success
        assert trio.current_time() - began == pytest.approx(lasts, abs=0.15)


async def test_two_peers_share_the_limit(start_node: Any) -> None:
    holder = await start_node(uploads=Uploads(2, rate=2 * len(LAYER)))
    holder.store.add_content(LAYER)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(partial(get, holder, BLOB_PATH, **PEER))
    assert trio.current_time() - began == pytest.approx(1.0, rel=0.25)


def test_a_limited_node_has_as_many_uploads_as_get_a_share() -> None:
    found = [Uploads(rate=rate).most for rate in (64 << 10, SHARE, 5 * SHARE + 1)]
    assert found == [1, 1, 5]
    assert Uploads(7, rate=SHARE).most == 7
    assert Uploads().most is None


@pytest.mark.parametrize("settings", [MirrorSettings(), STREAMED], ids=["held", "streamed"])
async def test_bodies_from_peers_come_at_the_limit(start_node: Any, settings: MirrorSettings) -> None:
    holder = await start_node()
    holder.store.add_content(LAYER)
    asker = await start_node(settings=replace(settings, download_rate=2 * len(LAYER)))
    asker.router.knows(holder)
    began = trio.current_time()
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert trio.current_time() - began == pytest.approx(0.5, abs=0.15)
    assert not asker.mirror.peers.penalties.is_slow(asker.router.providers[0])
    asker.store.add_content(LAYER)
    began = trio.current_time()
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert trio.current_time() - began < 0.1, "own content is not limited"
