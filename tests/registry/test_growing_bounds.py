"""Which downloads are shown to whom, and how many may follow."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry import growing
from spegel_consul.registry.mirror.followers import MOST, MOST_UNASKED
from spegel_consul.registry.mirror.own_requests import SHOWN_FOR
from tests.registry.growing_node import (
    LAYER,
    MIB,
    PEER,
    asked,
    followed,
    no_threads,
    node,
    passed,
    runtime_asks,
    start,
    status,
)

from .conftest import open_files

__all__ = ["no_threads", "node", "start"]


async def test_only_what_the_own_runtime_asked_for_is_shown(autojump_clock: MockClock, start: Any) -> None:
    node = await start(images=ImageFilter.build(["docker.io"], ["secret"]))
    node.store.download(LAYER).grow_to(MIB)
    assert await status(followed(node)) == 404
    assert await status(asked(node, Digest.of(LAYER), ns="quay.io")) == 404  # refused by the filters
    assert await status(followed(node)) == 404
    assert await status(asked(node, Digest.of(LAYER), method="HEAD")) == 404
    assert await status(asked(node, Digest.of(LAYER), "X-Spegel-Mirrored: true")) == 404  # another node's
    assert await status(followed(node)) == 404
    await runtime_asks(node)
    assert await status(followed(node)) == 200
    await trio.sleep(SHOWN_FOR + 1)
    assert await status(followed(node)) == 404


async def test_a_download_that_takes_longer_than_the_permission_is_shown(
    autojump_clock: MockClock, node: Any, nursery: trio.Nursery
) -> None:
    """The runtime asks once, at the start."""
    download, size = node.store.download(LAYER), 0

    async def download_slowly() -> None:
        nonlocal size
        while True:
            await trio.sleep(2)
            size += 100
            download.grow_to(size)

    nursery.start_soon(download_slowly)
    await trio.sleep(3 * SHOWN_FOR)
    assert await status(followed(node)) == 200


async def test_another_namespace_is_not_shown(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(LAYER, namespace="moby").grow_to(MIB)
    assert await status(followed(node)) == 404


async def test_credentials_come_first(autojump_clock: MockClock, start: Any, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("node:secret\n")
    node = await start(credentials=Credentials(tmp_path / "passwords"))
    secret = f"Authorization: Basic {base64.b64encode(b'node:secret').decode()}"
    assert await status(asked(node, Digest.of(LAYER), secret)) == 404
    node.store.download(LAYER).grow_to(len(LAYER))
    began = trio.current_time()
    assert await status(followed(node)) == 401
    assert passed(began, 0)
    async with followed(node, Digest.of(LAYER), secret) as reply:
        assert await reply.head() == 200
        assert await reply.rest() == LAYER


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", ["X-Spegel-Mirrored: true"]),
        ("GET", ["X-Spegel-Mirrored: true", "X-Spegel-Follow: "]),
        ("GET", ["X-Spegel-Mirrored: true", "X-Spegel-Follow: true, O0Il"]),
        ("GET", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {'1' * 200}"]),
        ("GET", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {'z' * 128}"]),
        ("HEAD", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {PEER}"]),
    ],
    ids=["Spegel", "no peer", "no base58", "too long", "too many bytes", "HEAD"],
)
async def test_other_peers_get_404_at_once(
    autojump_clock: MockClock, node: Any, method: str, fields: list[str]
) -> None:
    node.store.download(LAYER).grow_to(2 * MIB)
    began = trio.current_time()
    assert await status(asked(node, Digest.of(LAYER), *fields, method=method)) == 404
    assert passed(began, 0)


async def test_nothing_is_shown_if_following_is_off(autojump_clock: MockClock, start: Any) -> None:
    node = await start(follow=False)
    await runtime_asks(node)
    node.store.download(LAYER).grow_to(2 * MIB)
    began = trio.current_time()
    assert await status(followed(node)) == 404
    assert passed(began, 0)


@pytest.mark.parametrize(
    ("wanted", "start_at", "stop"),
    [
        ("bytes=100-199", 100, 200),
        (f"bytes={2 * MIB}-", 2 * MIB, len(LAYER)),
        (f"bytes={2 * MIB}-{99 * MIB}", 2 * MIB, len(LAYER)),
        ("bytes=-5", len(LAYER) - 5, len(LAYER)),
    ],
)
async def test_a_range_waits_for_its_first_byte(
    autojump_clock: MockClock, node: Any, wanted: str, start_at: int, stop: int
) -> None:
    download = node.store.download(LAYER)
    async with followed(node, Digest.of(LAYER), f"Range: {wanted}") as reply:
        download.grow_to(start_at)
        with trio.move_on_after(3) as waiting:
            await reply.head()
        assert waiting.cancelled_caught
        download.grow_to(start_at + 1)
        assert await reply.head() == 206
        assert reply.fields["content-range"] == f"bytes {start_at}-{stop - 1}/{len(LAYER)}"
        assert reply.length == stop - start_at
        download.commit()
        assert await reply.rest() == LAYER[start_at:stop]


async def test_ranges_that_are_not_sent(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(LAYER).grow_to(MIB)
    async with followed(node, Digest.of(LAYER), f"Range: bytes={len(LAYER)}-") as reply:
        assert await reply.head() == 416
        assert reply.fields["content-range"] == f"bytes */{len(LAYER)}"
    assert await status(followed(node, Digest.of(LAYER), "Range: bytes=0-1,5-6")) == 400
    async with followed(node, Digest.of(LAYER), "Range: bytes=0-") as reply:
        assert await reply.head() == 200


async def test_the_sixty_fifth_follower(autojump_clock: MockClock, node: Any, nursery: trio.Nursery) -> None:
    node.store.download(LAYER).grow_to(MIB)
    there, leave = list[int](), trio.Event()

    async def follow() -> None:
        async with followed(node) as reply:
            there.append(await reply.head())
            await leave.wait()

    for _ in range(MOST):
        nursery.start_soon(follow)
    while len(there) < MOST:
        await trio.sleep(0.01)
    assert set(there) == {200}
    began = trio.current_time()
    assert await status(followed(node)) == 404
    assert passed(began, 0)
    leave.set()
    await trio.sleep(1)
    assert await status(followed(node)) == 200


async def test_requests_for_what_nobody_asked_for_leave_room(
    autojump_clock: MockClock, node: Any, nursery: trio.Nursery
) -> None:
    """They need no digest that exists, and would keep all others from following this node."""
    node.store.download(LAYER).grow_to(MIB)
    ends: list[int] = []

    async def guess(number: int) -> None:
        ends.append(await status(followed(node, Digest.of(b"%d" % number))))

    for number in range(MOST):
        nursery.start_soon(guess, number)
    await trio.sleep(0.3)
    assert ends == [404] * (MOST - MOST_UNASKED)
    assert await status(followed(node)) == 200
    await trio.sleep(growing.UNASKED + 1)
    assert ends == [404] * MOST
    assert not node.mirror.followers.live()


async def test_clients_that_leave_free_everything(autojump_clock: MockClock, node: Any) -> None:
    await trio.sleep(1)
    before = open_files()
    download = node.store.download(LAYER)
    for size in (0, MIB):
        download.grow_to(size)
        async with followed(node) as reply:
            if size:
                await reply.head()
            await trio.sleep(1)
            assert len(node.mirror.followers.live()) == 1
        await trio.sleep(3)
        assert not node.mirror.followers.live()
    assert open_files() <= before + 1  # the download's own


async def test_a_slow_follower_is_behind(autojump_clock: MockClock, start: Any) -> None:
    node = await start()
    data = os.urandom(32 * MIB)
    await runtime_asks(node, data)
    download = node.store.download(data)
    async with followed(node, Digest.of(data)) as slow:
        async with followed(node, Digest.of(data)) as fast:
            for size in range(MIB, len(data) + 1, MIB):
                download.grow_to(size)
                if size == MIB:
                    assert await slow.head() == await fast.head() == 200
                assert len(await fast.read(MIB)) == MIB
                await trio.sleep(0.2)
            assert node.mirror.followers.behind(trio.current_time()) == (PEER,)
            assert [send.behind for send in node.mirror.followers.live()] == [True]  # the fast one has all
        assert await slow.rest() == data
    await trio.sleep(0.1)
    assert node.mirror.followers.behind(trio.current_time()) == ()


async def test_what_the_index_has_meanwhile_is_own_content(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    async with followed(node) as reply:
        await trio.sleep(1)
        download.abort()
        node.store.add_content(LAYER, "application/vnd.oci.image.layer.v1.tar")
        assert await reply.head() == 200
        assert reply.fields["content-type"] == "application/vnd.oci.image.layer.v1.tar"
        assert await reply.rest() == LAYER


async def test_what_was_committed_a_moment_ago(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    assert await node.store.at_work() == 0
    download.commit()
    async with followed(node) as reply:
        assert await reply.head() == 200
        assert await reply.rest() == LAYER
