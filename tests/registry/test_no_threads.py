"""The limit of processes is reached: what has begun is sent to its end, and what has not is left to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.registry import own_files
from spegel_consul.store.layout import LayoutStore
from spegel_consul.zerocopy import send

from .test_links import layout, put

__all__ = ["layout"]


def leave_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let ``count`` more threads be started."""
    run_sync, started = trio.to_thread.run_sync, 0

    async def limited(call: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        if started <= count:
            return await run_sync(call, **options)
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", limited)


async def test_a_layer_on_disk_that_has_begun_is_sent_whole(
    start_node: Any, nursery: trio.Nursery, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(251)) * 40_000  # more than one thread sends
    _, url = put(layout, content)
    store = LayoutStore(layout, interval=3600)
    await nursery.start(store.run)
    node = await start_node(store=store)
    monkeypatch.setattr(send, "_resident", lambda fd, start, stop: False)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as client:
        leave_threads(monkeypatch, 1)
        assert (await client.get(url)).content == content


@pytest.mark.parametrize("size", [1000, 300_000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_content_that_can_not_be_opened_is_not_there(
    start_node: Any, nursery: trio.Nursery, layout: Path, monkeypatch: pytest.MonkeyPatch, size: int, method: str
) -> None:
    def on_disk(*_: object) -> int:
        raise BlockingIOError

    _, url = put(layout, b"x" * size)
    store = LayoutStore(layout, interval=3600)
    await nursery.start(store.run)
    node = await start_node(store=store)
    monkeypatch.setattr(own_files, "open_cached", on_disk)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as client:
        leave_threads(monkeypatch, 0)
        assert (await client.request(method, url)).status_code == 404
