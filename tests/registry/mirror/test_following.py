"""Content that no node has is read from a node that is downloading it, as the keeper of its group says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.peers import Provider, RingError
from spegel_consul.registry import growing
from spegel_consul.registry.mirror.followers import WAIT
from spegel_consul.registry.mirror.following import group_claim
from spegel_consul.registry.mirror.following.group_claim import CLAIM_WITHIN
from spegel_consul.registry.mirror.held_bodies import GROWING_STALL
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.questions import source_search
from spegel_consul.registry.mirror.questions.source_search import SILENT
from spegel_consul.ring.dht.claims import ClaimReport, Verdict, Why
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL

from ..conftest import ASKER, LIMITS
from ..image import LAYER, get
from .growing_source import ALONE, CLAIM, DownloadingStore, GrowingSource, ScriptedKeeper, follow

OTHER = bytes(reversed(range(251))) * 8000
CONFIG = b'{"os":"linux"}'
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(CONFIG), "size": len(CONFIG), "mediaType": "application/x"},
        "layers": [
            {"digest": Digest.of(each), "size": len(each), "mediaType": "application/x"} for each in (LAYER, OTHER)
        ],
    }
).encode()
GROUP = Digest.of(MANIFEST)
CONTENT = {Digest.of(each): each for each in (LAYER, OTHER, CONFIG, MANIFEST)}
HELD, STREAMED = MirrorSettings(follow=True), MirrorSettings(follow=True, verify_first=0)
WAYS = pytest.mark.parametrize("settings", [HELD, STREAMED], ids=["held", "streamed"])


def path(content: bytes, kind: str = "blobs") -> str:
    return f"/v2/library/app/{kind}/{Digest.of(content)}?ns=docker.io"


async def start(start_node: Any, tmp_path: Path, settings: MirrorSettings = STREAMED, **how: Any) -> Any:
    """A node whose runtime downloads both layers, and whose mirror knows the manifest."""
    store = DownloadingStore(tmp_path / "asker")
    store.download(LAYER)
    store.download(OTHER)
    node = await start_node(settings=settings, store=store, **how)
    node.mirror.peers.learn(GROUP, MANIFEST)
    return node


@pytest.fixture
async def sources(nursery: trio.Nursery) -> list[GrowingSource]:
    found = [GrowingSource(number, dict(CONTENT)) for number in (1, 2, 3)]
    for each in found:
        await nursery.start(each.run)
    return found


class Pull:
    """A client that reads a body beside the test."""

    def __init__(self, node: Any, content: bytes) -> None:
        self.node = node
        self.content = content
        self.received = b""
        self.status = 0
        self.cut = False
        self.done = trio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.node.url, trust_env=False, timeout=60) as client:
            try:
                async with client.stream("GET", path(self.content)) as response:
                    self.status = response.status_code
                    async for piece in response.aiter_raw():
                        self.received += piece
            except httpx.RemoteProtocolError:
                self.cut = True
        self.done.set()


async def until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


def losses(node: Any) -> list[tuple[str, Why]]:
    return [(report.lost, report.why) for _, report in node.router.reports if report.lost]


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
    assert first == second == ClaimReport(serves=True, working=True, have=len(CONFIG) + 70_000)
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
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
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


@WAYS
async def test_a_source_that_dies_in_mid_body_is_replaced(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery, settings: MirrorSettings
) -> None:
    asker = await start(start_node, tmp_path, settings)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].shown = 400_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: sum(each.received() for each in asker.mirror.traces.live.values()) == 400_000)
    sources[0].dies = True
    await pull.done.wait()
    assert pull.received == LAYER
    assert [(each.start, each.follower) for each in sources[1].asked] == [(400_000, ASKER)]
    assert losses(asker) == [(sources[0].provider.peer_id, Why.CUT)]
    assert not asker.mirror.peers.penalties.bars(sources[0].provider)
    assert asker.metric("spegel_follow_failures_total", {"why": "cut"}) == 1


async def test_all_transfers_of_an_image_move_when_the_verdict_changes(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    keeper = asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 300_000
    pulls = [Pull(asker, LAYER), Pull(asker, OTHER)]
    for pull in pulls:
        nursery.start_soon(pull.run)
    await until(lambda: all(len(pull.received) == 300_000 for pull in pulls))
    keeper.verdict = follow(sources[1])
    await until(lambda: all(pull.done.is_set() for pull in pulls))
    assert [pull.received for pull in pulls] == [LAYER, OTHER]
    assert sorted((each.digest, each.start) for each in sources[1].asked) == sorted(
        (Digest.of(each), 300_000) for each in (LAYER, OTHER)
    )
    await until(lambda: all(each.left for each in sources[0].asked))
    assert losses(asker) == [], "a source that is left has not failed"


async def test_a_held_body_of_a_node_that_becomes_the_claimer_is_a_miss(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path, HELD)
    keeper = asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 300_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: sum(each.received() for each in asker.mirror.traces.live.values()) == 300_000)
    keeper.verdict = CLAIM
    await pull.done.wait()
    assert (pull.status, pull.cut) == (404, False)
    assert asker.mirror.peers.spool_space.promised == 0


async def test_a_source_is_asked_at_its_other_address_too(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path)
    source = sources[0].provider
    asker.router.keeper = ScriptedKeeper(follow(Provider(source.peer_id, ("127.0.0.1", 1), source.registry)))
    assert (await get(asker, path(LAYER))).content == LAYER
    assert losses(asker) == []


async def test_a_provider_that_came_meanwhile_goes_before_the_next_source(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    holder, asker = await start_node(), await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].shown = 300_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: len(pull.received) == 300_000)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    sources[0].dies = True
    await pull.done.wait()
    assert pull.received == LAYER
    assert sources[1].asked == []


async def test_a_follower_that_becomes_the_claimer_cuts_its_transfers(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    keeper = asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 300_000
    pulls = [Pull(asker, LAYER), Pull(asker, OTHER)]
    for pull in pulls:
        nursery.start_soon(pull.run)
    await until(lambda: all(len(pull.received) == 300_000 for pull in pulls))
    keeper.verdict = CLAIM
    await until(lambda: all(pull.done.is_set() for pull in pulls))
    assert [(pull.cut, len(pull.received)) for pull in pulls] == [(True, 300_000)] * 2
    began = trio.current_time()
    assert (await get(asker, path(LAYER), range="bytes=300000-")).status_code == 404
    assert trio.current_time() - began < 0.5
    assert asker.metric("spegel_takeovers_total") == 1


async def test_a_complete_node_that_is_told_to_claim_has_taken_nothing_over(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0], again=0.5))
    assert (await get(asker, path(LAYER))).content == LAYER
    for content in (LAYER, OTHER):
        asker.store.abort(content)
    for content in CONTENT.values():
        asker.store.add_content(content)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    [group] = asker.mirror.peers.follows.active
    await until(lambda: group.claim.role == "claimer")
    assert asker.metric("spegel_claims_total", {"verdict": "claim"}) > 0
    assert asker.metric("spegel_takeovers_total") == 0


async def test_a_request_that_waits_for_its_first_byte_moves_too(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    keeper = asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 0
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: sources[0].asked)
    keeper.verdict = follow(sources[1])
    await pull.done.wait()
    assert pull.received == LAYER
    assert losses(asker) == []


@pytest.mark.parametrize(
    ("fault", "why"), [("refuses", Why.REFUSED), ("is not reached", Why.UNREACHABLE), ("lies", Why.WRONG)]
)
async def test_a_source_that_fails_at_once_is_reported(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, fault: str, why: Why
) -> None:
    asker = await start(start_node, tmp_path)
    wrong = (
        Provider(sources[0].provider.peer_id, ("127.0.0.1", 1)) if fault == "is not reached" else sources[0].provider
    )
    asker.router.keeper = ScriptedKeeper(follow(wrong), after_loss=follow(sources[1]))
    content = CONFIG if fault == "lies" else LAYER
    if fault == "refuses":
        sources[0].hides.add(Digest.of(LAYER))
    sources[0].content[Digest.of(CONFIG)] = bytes(len(CONFIG))
    assert (await get(asker, path(content))).content == content
    assert losses(asker) == [(wrong.peer_id, why)]
    assert not asker.mirror.peers.penalties.bars(sources[0].provider)


@WAYS
async def test_wrong_bytes_of_a_source_are_reported_and_not_punished(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, settings: MirrorSettings
) -> None:
    asker = await start(start_node, tmp_path, settings)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=follow(sources[1]))
    sources[0].content[Digest.of(LAYER)] = bytes(len(LAYER))
    if settings is HELD:
        assert (await get(asker, path(LAYER))).content == LAYER
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            await get(asker, path(LAYER))
        await until(lambda: losses(asker))
        assert (await get(asker, path(LAYER))).content == LAYER
    assert losses(asker) == [(sources[0].provider.peer_id, Why.WRONG)]
    for each in sources[:2]:
        assert not asker.mirror.peers.penalties.bars(each.provider)
        assert not asker.mirror.peers.penalties.is_slow(each.provider)
    assert asker.metric("spegel_verification_failures_total") == 1


async def test_a_complete_provider_is_blamed_for_wrong_bytes_as_before(
    start_node: Any, start_peer: Any, tmp_path: Path
) -> None:
    from ..conftest import head

    asker = await start(start_node, tmp_path, STREAMED)
    liar = await start_peer(head(200, len(LAYER)), bytes(len(LAYER)))
    asker.router.knows(liar.address)
    with pytest.raises(httpx.RemoteProtocolError):
        await get(asker, path(LAYER))
    assert asker.mirror.peers.penalties.bars(Provider("any", liar.address))


async def test_a_keeper_that_hangs_costs_its_limit_once(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_claim, "SKIPPED", 3.0)
    asker = await start(start_node, tmp_path)

    async def hang(group: str, report: ClaimReport) -> Verdict:
        await trio.sleep_forever()
        raise AssertionError

    asker.router.keeper = hang
    times = []
    for content in (LAYER, OTHER, LAYER, CONFIG):
        before = trio.current_time()
        assert (await get(asker, path(content))).status_code == 404
        times.append(trio.current_time() - before)
    assert CLAIM_WITHIN <= times[0] < CLAIM_WITHIN + 0.5
    assert max(times[1:]) < 0.5
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    assert (await get(asker, path(LAYER))).status_code == 404, "the report that hangs is still under way"
    await until(lambda: len(asker.router.reports) > 1)
    assert (await get(asker, path(LAYER))).content == LAYER


async def test_no_keeper_is_as_before(start_node: Any, tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)

    async def fail(group: str, report: ClaimReport) -> Verdict:
        raise RingError("no keeper answers")

    asker.router.keeper = fail
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).status_code == 404
    assert trio.current_time() - began < 0.5
    assert asker.metric("spegel_claims_total", {"verdict": "none"}) == 1


async def test_a_keeper_that_breaks_ends_nothing(start_node: Any, sources: list[GrowingSource], tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)

    async def break_down(group: str, report: ClaimReport) -> Verdict:
        raise ValueError("a defect")

    asker.router.keeper = break_down
    assert (await get(asker, path(LAYER))).status_code == 404
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    await trio.sleep(CLAIM_WITHIN + 0.5)
    assert (await get(asker, path(LAYER))).content == LAYER


@pytest.mark.parametrize("named", ["itself", "a barred peer", "nobody", "what is not permitted"])
async def test_a_verdict_that_can_not_be_followed_is_a_miss(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, named: str
) -> None:
    def permits(provider: Provider) -> bool:
        return named != "what is not permitted"

    asker = await start(start_node, tmp_path, permits=permits)
    source = sources[0].provider
    if named == "itself":
        source = Provider(ASKER, asker.address)
    if named == "a barred peer":
        asker.mirror.peers.penalties.lied(source)
    asker.router.keeper = ScriptedKeeper(follow() if named == "nobody" else follow(source))
    began = trio.current_time()
    assert (await get(asker, path(LAYER))).status_code == 404
    assert trio.current_time() - began < 1.5
    assert sources[0].asked == []
    assert len(asker.router.reports) <= 4


async def test_claims_end_and_leave_nothing(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_claim, "LINGER", 2.0)
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0], again=0.5))
    assert (await get(asker, path(LAYER))).content == LAYER
    follows = asker.mirror.peers.follows
    [group] = follows.active
    await until(lambda: not group.claim.follows)  # the client has the last bytes a moment before
    asker.store.abort(LAYER)
    asker.store.abort(OTHER)
    await trio.sleep(1.5)
    assert follows.active == (group,)
    await trio.sleep(2)
    assert follows.active == ()
    reports = len(asker.router.reports)
    await trio.sleep(1)
    assert len(asker.router.reports) == reports
    # a claim that nobody counts on ends at once
    asker.router.keeper = ScriptedKeeper(ALONE)
    assert (await get(asker, path(OTHER))).status_code == 404
    await trio.sleep(2.5)
    assert follows.active == ()


async def test_the_group_is_read_from_the_manifest_that_the_runtime_took_from_upstream(
    start_node: Any, tmp_path: Path
) -> None:
    store = DownloadingStore(tmp_path / "asker")
    asker = await start_node(settings=STREAMED, store=store)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    assert (await get(asker, path(MANIFEST, "manifests"))).status_code == 404
    store.download(MANIFEST, len(MANIFEST))  # committed, and unknown to the index
    store.download(LAYER)
    assert (await get(asker, path(LAYER))).status_code == 404
    assert {group for group, _ in asker.router.reports} == {GROUP}


@pytest.mark.parametrize("client", ["127.0.0.1", "127.0.0.2"], ids=["own", "of another machine"])
async def test_only_manifests_of_own_clients_change_groups(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, client: str
) -> None:
    """Otherwise a stranger could choose the group of a blob here, and so its keeper."""
    asker = await start(start_node, tmp_path)
    asker.router.knows(sources[0].address)
    crafted = MANIFEST + b"\n"
    sources[0].content = {Digest.of(crafted): crafted}
    transport = httpx.AsyncHTTPTransport(local_address=client)
    async with httpx.AsyncClient(base_url=asker.url, transport=transport) as asks:
        assert (await asks.get(path(crafted, "manifests"))).content == crafted
    groups = asker.mirror.peers.follows.groups
    assert groups.known(Digest.of(LAYER)) == (Digest.of(crafted) if client == "127.0.0.1" else GROUP)


async def test_a_runtime_that_begins_its_download_a_moment_later_is_a_claimer(start_node: Any, tmp_path: Path) -> None:
    store = DownloadingStore(tmp_path / "asker")
    asker = await start_node(settings=STREAMED, store=store)

    async def keep(group: str, report: ClaimReport) -> Verdict:
        if not report.serves:
            store.download(LAYER)
            return ALONE
        return CLAIM

    asker.router.keeper = keep
    assert (await get(asker, path(LAYER))).status_code == 404
    assert [report.serves for _, report in asker.router.reports] == [False, True]


async def test_two_images_have_two_claims(start_node: Any, sources: list[GrowingSource], tmp_path: Path) -> None:
    """This node claims one image and follows another node for the other one; neither waits for the other."""
    asker = await start(start_node, tmp_path)
    second = json.dumps(
        {"mediaType": OCI_MANIFEST, "layers": [{"digest": Digest.of(OTHER), "size": len(OTHER)}]}
    ).encode()
    asker.mirror.peers.learn(Digest.of(second), second)

    async def keep(group: str, report: ClaimReport) -> Verdict:
        return CLAIM if group == GROUP else follow(sources[0])

    asker.router.keeper = keep
    assert (await get(asker, path(LAYER))).status_code == 404
    assert (await get(asker, path(OTHER))).content == OTHER
    assert (await get(asker, path(LAYER))).status_code == 404
    assert [each.digest for each in sources[0].asked] == [Digest.of(OTHER)]


async def test_several_ranges_are_followed_too(start_node: Any, sources: list[GrowingSource], tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    response = await get(asker, path(LAYER), range="bytes=5-9")
    assert (response.status_code, response.content) == (206, LAYER[5:10])
