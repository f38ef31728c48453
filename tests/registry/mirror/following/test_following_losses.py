"""Sources that are followed and fail: which source comes next, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider, RingError
from spegel_consul.registry.mirror.following import group_claim
from spegel_consul.registry.mirror.following.group_claim import CLAIM_WITHIN
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.questions import source_search
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What, Why

from ...conftest import ASKER
from ...image import LAYER, get
from .following_node import CONFIG, CONTENT, HELD, OTHER, STREAMED, WAYS, Pull, losses, path, sources, start, until
from .growing_source import CLAIM, GrowingSource, ScriptedKeeper, follow

__all__ = ["sources"]


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
    from ...conftest import head

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


async def test_two_nodes_do_not_wait_for_each_other(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The source began to follow this node with the layer before it was named, for another image with that layer."""
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].hangs = True
    stream = await trio.open_tcp_stream(*asker.address)
    fields = f"Host: x\r\nX-Spegel-Mirrored: true\r\nX-Spegel-Follow: {sources[0].provider.peer_id}"
    await stream.send_all(f"GET {path(LAYER)} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    async with stream:
        await until(lambda: len(asker.mirror.followers) == 1)
        with trio.fail_after(2):
            assert (await get(asker, path(LAYER))).status_code == 404
        assert not sources[0].asked
        assert not losses(asker)


async def test_a_source_is_not_blamed_for_the_limit_of_the_asking_node(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is one for all sources of a request, such as nodes of a chain whose head stalls."""
    monkeypatch.setattr(source_search, "FIRST_BYTE", 2.0)
    monkeypatch.setattr(source_search, "_LONG", 1.25)
    asker = await start_node(settings=MirrorSettings(follow=True))
    waiting = [await start_peer(*[b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.1] * 60) for _ in range(3)]
    named = [Provider(f"12D3KooW{name}", peer.address) for name, peer in zip("ABC", waiting, strict=True)]
    began, lost = trio.current_time(), []

    async def keeper(_: str, report: ClaimReport) -> Verdict:
        if report.lost:
            lost.append(report.lost)
        moved = trio.current_time() - began > 1.4
        return Verdict(What.FOLLOW, (named[moved + len(lost)],), 0.5)

    asker.router.keeper = keeper
    with trio.fail_after(10):
        response = await get(asker, f"{path(LAYER)}")
    assert response.status_code == 404
    assert waiting[1].requests, "the second source was asked"
    assert not lost
