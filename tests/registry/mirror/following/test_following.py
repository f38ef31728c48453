"""Content that no node has is read from a node that is downloading it, as the keeper of its group says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.registry import growing
from spegel_consul.registry.mirror.followers import WAIT
from spegel_consul.registry.mirror.held_bodies import GROWING_STALL
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.questions import source_search
from spegel_consul.registry.mirror.questions.source_search import SILENT
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What, Why
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL

from ...conftest import ASKER, LIMITS
from ...image import LAYER, get
from .following_node import (
    CONFIG,
    GROUP,
    HELD,
    MANIFEST,
    OTHER,
    STREAMED,
    WAYS,
    Pull,
    losses,
    path,
    sources,
    start,
    until,
)
from .growing_source import ALONE, CLAIM, DownloadingStore, GrowingSource, ScriptedKeeper, follow

__all__ = ["sources"]


@WAYS
async def test_content_is_read_as_it_grows(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery, settings: MirrorSettings
) -> None:
    asker = await start(start_node, tmp_path, settings)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 400_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: sum(each.received() for each in asker.mirror.traces.live.values()) == 400_000)
    await trio.sleep(1.5)  # longer than a peer with complete content may be silent here
    assert pull.received == (b"" if settings is HELD else LAYER[:400_000])
    sources[0].shown = 1 << 40
    await pull.done.wait()
    assert pull.received == LAYER
    await until(lambda: asker.mirror.traces.over)
    assert [(each.digest, each.start, each.follower) for each in sources[0].asked] == [(Digest.of(LAYER), None, ASKER)]
    trace = asker.mirror.traces.over[-1].to_json()
    assert (trace["followed"], trace["outcome"]) == (f"127.0.0.1:{sources[0].address[1]}", "hit")
    assert trace["claimed_ms"] is not None
    await until(lambda: asker.metric("spegel_followed_bytes_total") == len(LAYER))
    assert asker.metric("spegel_claims_total", {"verdict": "follow"}) >= 1
    assert losses(asker) == []


async def test_the_report_says_what_the_node_has(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.store.add_content(CONFIG)
    asker.store.download(OTHER, 70_000)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 100_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: len(asker.router.reports) == 2)
    assert {group for group, _ in asker.router.reports} == {GROUP}
    first, second = [report for _, report in asker.router.reports]
    left = len(MANIFEST) + len(OTHER) - 70_000 + len(LAYER)
    assert first == second == ClaimReport(serves=True, working=True, have=len(CONFIG) + 70_000, left=left)
    sources[0].shown = 1 << 40
    await pull.done.wait()


async def test_a_claimer_is_answered_404_and_asks_nobody(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    began = trio.current_time()
    for content in (LAYER, OTHER, LAYER):
        assert (await get(asker, path(content))).status_code == 404
    assert trio.current_time() - began < 1
    assert len(asker.router.reports) == 1, "one claim counts for all content of the image"
    assert len(asker.mirror.peers.follows.active) == 1
    assert asker.metric("spegel_claims_total", {"verdict": "claim"}) == 1


async def test_a_registry_that_is_slow_for_all_is_remembered(start_node: Any, tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(Verdict(What.CLAIM, slow_upstream=True))
    await get(asker, path(LAYER))
    asker.router.keeper = ScriptedKeeper(CLAIM)
    for number, registry in enumerate(("docker.io", "other.example.com")):
        await get(asker, path(b"%d" % number).replace("docker.io", registry))
    assert [report.declines for _, report in asker.router.reports] == [False, True, False]


async def test_a_registry_without_a_name_is_not_remembered(start_node: Any, tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(Verdict(What.CLAIM, slow_upstream=True))
    for content in (b"1", b"2"):
        await get(asker, path(content).removesuffix("?ns=docker.io"))
    assert [report.declines for _, report in asker.router.reports] == [False, False]


async def test_the_claim_is_made_beside_the_lookup(start_node: Any, tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    keeper = asker.router.keeper = ScriptedKeeper(ALONE)
    asker.router.providers, keeper.delay = [None], 0.15  # a lookup that never ends
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).status_code == 404
    assert 0.15 < trio.current_time() - began < 0.15 + asker.mirror.peers.settings.resolve_timeout


async def test_a_node_without_downloads_makes_no_claim_of_a_group_that_nobody_is_at_work_on(
    start_node: Any, tmp_path: Path
) -> None:
    asker = await start_node(settings=STREAMED, store=DownloadingStore(tmp_path / "asker"))
    asker.router.vacant = True
    for kind in ("blobs", "manifests"):
        assert (await get(asker, path(LAYER, kind))).status_code == 404
    assert len(asker.router.asked) == 2
    assert asker.router.reports == []
    asker.store.download(OTHER)
    assert (await get(asker, path(LAYER))).status_code == 404
    assert [group for group, _ in asker.router.reports] == [Digest.of(LAYER)]


async def test_the_key_of_a_layer_says_nothing_of_the_group_of_its_manifest(start_node: Any, tmp_path: Path) -> None:
    asker = await start_node(settings=STREAMED, store=DownloadingStore(tmp_path / "asker"))
    asker.mirror.peers.learn(GROUP, MANIFEST)
    asker.router.vacant = True
    assert (await get(asker, path(LAYER))).status_code == 404
    assert {group for group, _ in asker.router.reports} == {GROUP}


async def test_a_node_without_downloads_follows_after_the_lookup(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start_node(settings=STREAMED, store=DownloadingStore(tmp_path / "asker"))
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 1 << 40
    answer = await get(asker, path(LAYER))
    assert (answer.status_code, answer.content) == (200, LAYER)
    await until(lambda: asker.mirror.traces.over)
    assert asker.mirror.traces.over[-1].to_json()["claimed_ms"] is not None


async def test_no_claim_is_made_when_a_provider_is_known(start_node: Any, tmp_path: Path) -> None:
    holder, asker = await start_node(), await start(start_node, tmp_path)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    asker.mirror.peers.recent.add(Digest.of(LAYER), asker.router.providers[0])
    assert (await get(asker, path(LAYER))).content == LAYER
    assert asker.router.reports == []
    assert not asker.mirror.peers.follows.active


async def test_a_provider_goes_before_the_verdict(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    holder, asker = await start_node(), await start(start_node, tmp_path)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    keeper = asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    keeper.delay = 1.0
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).content == LAYER
    assert trio.current_time() - began < 1.0
    assert sources[0].asked == []


async def following(asker: Any, source: GrowingSource, nursery: trio.Nursery) -> Pull:
    """Have ``asker`` follow the source with OTHER."""
    asker.router.keeper = ScriptedKeeper(follow(source))
    source.shown = 300_000
    pull = Pull(asker, OTHER)
    nursery.start_soon(pull.run)
    await until(lambda: len(pull.received) == 300_000)
    return pull


@pytest.mark.parametrize("cached", [True, False], ids=["a known provider", "a provider to be looked up"])
async def test_a_source_that_is_followed_goes_before_providers(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery, cached: bool
) -> None:
    """All followers would share the links of the first complete nodes."""
    holder, asker = await start_node(), await start(start_node, tmp_path)
    await following(asker, sources[0], nursery)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    if cached:
        asker.mirror.peers.recent.add(Digest.of(LAYER), asker.router.providers[0])
    sources[0].shown = 1 << 40
    assert (await get(asker, path(LAYER))).content == LAYER
    assert [each.digest for each in sources[0].asked] == [Digest.of(OTHER), Digest.of(LAYER)]
    assert holder.mirror.followers.live() == ()
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == 0


async def test_a_source_that_is_followed_and_refuses_gives_way_to_providers(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    holder, asker = await start_node(), await start(start_node, tmp_path)
    await following(asker, sources[0], nursery)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    sources[0].hides.add(Digest.of(LAYER))
    assert (await get(asker, path(LAYER))).content == LAYER
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER)
    assert losses(asker) == [], "it sends other content of the group"


async def test_nobody_has_what_a_followed_source_refuses(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    await following(asker, sources[0], nursery)
    sources[0].hides.add(Digest.of(LAYER))
    assert (await get(asker, path(LAYER))).status_code == 404
    assert [each.digest for each in sources[0].asked].count(Digest.of(LAYER)) == 3, "it is not asked all over again"


async def test_a_source_that_has_not_begun_is_never_called_slow(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The keeper measures claimers itself, so a follower reports only sources that fail."""
    asker = await start(start_node, tmp_path)
    pull = await following(asker, sources[0], nursery)
    waiting = Pull(asker, LAYER)
    sources[0].shown = 0
    nursery.start_soon(waiting.run)
    await trio.sleep(3)
    sources[0].shown = 300_001
    await trio.sleep(3)
    assert losses(asker) == []
    sources[0].shown = 1 << 40
    await pull.done.wait()
    await waiting.done.wait()
    assert waiting.received == LAYER


async def test_a_source_that_hangs_costs_seconds_and_a_second_one_ends_the_search(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].hangs = sources[1].hangs = True
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).status_code == 404
    assert 2 * SILENT <= trio.current_time() - began < 8
    assert losses(asker)[:1] == [(sources[0].provider.peer_id, Why.CUT)]
    began = trio.current_time()
    assert (await get(asker, path(OTHER))).status_code == 404
    assert trio.current_time() - began < 0.5, "the keeper is not believed for the image"


async def test_another_source_is_followed_when_one_hangs(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].hangs = True
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).content == LAYER
    assert SILENT <= trio.current_time() - began < SILENT + 1
    assert not asker.mirror.peers.penalties.bars(sources[0].provider)


async def test_a_source_that_says_that_it_waits_is_waited_for(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 0
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await trio.sleep(4 * SILENT)
    sources[0].shown = 1 << 40
    await pull.done.wait()
    assert (pull.received, losses(asker)) == (LAYER, [])


def test_the_answer_of_a_source_comes_before_the_limit_of_its_follower() -> None:
    assert source_search.FIRST_BYTE > WAIT
    assert SILENT > 3 * growing._INTERIM_EVERY
    assert GROWING_STALL > CHAIN_STALL > STALL


async def test_others_requests_make_no_claim(start_node: Any, sources: list[GrowingSource], tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    assert (await get(asker, path(LAYER), "HEAD")).status_code == 404
    assert (await get(asker, "/v2/library/app/manifests/v1?ns=docker.io")).status_code == 404
    transport = httpx.AsyncHTTPTransport(verify=False, local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=asker.url, transport=transport) as client:
        assert (await client.get(path(LAYER))).status_code == 404
    assert asker.router.reports == []


async def test_without_the_setting_nobody_is_followed(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path, MirrorSettings())
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    assert (await get(asker, path(LAYER))).status_code == 404
    assert asker.router.reports == []


async def test_a_complete_source_that_hangs_in_mid_body_is_left_as_soon_as_any_peer(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].shown, sources[0].complete = 400_000, True
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: len(pull.received) == 400_000)
    began = trio.current_time()
    await pull.done.wait()
    assert pull.received == LAYER
    assert trio.current_time() - began < LIMITS.stall + 1
    assert losses(asker) == [(sources[0].provider.peer_id, Why.CUT)]


async def test_a_complete_source_that_is_slow_is_left_for_a_provider(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    holder, asker = await start_node(), await start(start_node, tmp_path)
    holder.store.add_content(LAYER)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown, sources[0].complete = 400_000, True
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: len(pull.received) == 400_000)
    asker.router.knows(holder)
    while not pull.done.is_set() and sources[0].shown < 500_000:
        await trio.sleep(0.2)
        sources[0].shown += 5_000
    await pull.done.wait()
    assert pull.received == LAYER
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) > 0
    assert losses(asker) == []
