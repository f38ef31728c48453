"""What a miss may cost, and what it may not wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from ..image import BLOB_PATH, LAYER, get
from .following.following_node import GROUP, MANIFEST, STREAMED, path
from .following.growing_source import CLAIM, DownloadingStore, ScriptedKeeper


class Spawned(trio.abc.Instrument):
    """The names of the tasks that were spawned."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)


@pytest.mark.parametrize("settings", [MirrorSettings(), STREAMED], ids=["follow off", "follow on"])
async def test_a_miss_needs_no_task(start_node: Any, tmp_path: Path, settings: MirrorSettings) -> None:
    asker = await start_node(settings=settings, store=DownloadingStore(tmp_path / "asker"))
    asker.router.vacant = True
    assert (await get(asker, path(LAYER))).status_code == 404  # the first one looks for the layer's manifest
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    for kind in ("blobs", "manifests"):
        assert (await get(asker, path(LAYER, kind))).status_code == 404
    trio.lowlevel.remove_instrument(spawned)
    assert [name for name in spawned.names if "registry.mirror" in name] == []


async def test_a_hit_does_not_wait_for_a_slow_disk(
    start_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the downloads says whether a claim can be put off, and a hit needs no claim."""
    holder, asker = await start_node(), await start_node(settings=STREAMED, store=DownloadingStore(tmp_path / "asker"))
    holder.store.add_content(LAYER)
    asker.router.knows(holder)

    async def at_work() -> int | None:
        await trio.sleep(3)
        return None

    monkeypatch.setattr(asker.store, "at_work", at_work)
    monkeypatch.setattr(asker.store, "is_idle", lambda: False)
    with trio.fail_after(1):
        assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_a_provider_that_comes_late_is_no_use_to_a_miss(start_node: Any) -> None:
    holder, asker = await start_node(), await start_node(settings=MirrorSettings(resolve_timeout=0.1))
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    asker.router.delay = 0.3
    began = trio.current_time()
    answer = await get(asker, BLOB_PATH)
    assert answer.status_code == 404
    assert "within 100 ms" in answer.text
    assert 0.1 <= trio.current_time() - began < 0.28


async def test_all_names_of_an_answer_are_known_before_one_is_chosen(start_node: Any) -> None:
    """The less loaded one is asked, also if it is named last."""
    loaded, free, asker = await start_node(), await start_node(), await start_node()
    for holder in (loaded, free):
        holder.store.add_content(LAYER)
    asker.router.knows(loaded, free)
    asker.mirror.peers.loads.told(loaded.address, "9", trio.current_time())
    asker.mirror.peers.loads.told(free.address, "0", trio.current_time())
    answer = await get(asker, BLOB_PATH)
    assert answer.headers["x-spegel-served-by"] == f"127.0.0.1:{free.address[1]}"


class SlowStore(DownloadingStore):
    """A disk that takes its time for a manifest."""

    async def peek(self, digest: Digest, most: int) -> bytes | None:
        await trio.sleep(0.04)
        return await super().peek(digest, most)


async def test_a_manifest_that_is_read_slowly_names_the_group(start_node: Any, tmp_path: Path) -> None:
    asker = await start_node(settings=STREAMED, store=SlowStore(tmp_path / "asker"))
    asker.router.keeper = ScriptedKeeper(CLAIM)
    assert (await get(asker, path(MANIFEST, "manifests"))).status_code == 404
    asker.store.commit(MANIFEST)
    asker.store.download(LAYER)
    assert (await get(asker, path(LAYER))).status_code == 404
    assert {group for group, _ in asker.router.reports} == {GROUP}
