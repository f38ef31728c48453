"""Which requests make claims, of which group, and how claims end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.following import group_claim
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict

from ...conftest import ASKER
from ...image import LAYER, get
from .following_node import GROUP, MANIFEST, OTHER, STREAMED, path, sources, start, until
from .growing_source import ALONE, CLAIM, DownloadingStore, GrowingSource, ScriptedKeeper, follow

__all__ = ["sources"]


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
    store.commit(MANIFEST)
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
    transport = httpx.AsyncHTTPTransport(verify=False, local_address=client)
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
    third = OTHER[::-1]
    sources[0].content[Digest.of(third)] = third
    second = json.dumps(
        {"mediaType": OCI_MANIFEST, "layers": [{"digest": Digest.of(third), "size": len(third)}]}
    ).encode()
    asker.mirror.peers.learn(Digest.of(second), second)

    async def keep(group: str, report: ClaimReport) -> Verdict:
        return CLAIM if group == GROUP else follow(sources[0])

    asker.router.keeper = keep
    assert (await get(asker, path(LAYER))).status_code == 404
    assert (await get(asker, path(third))).content == third
    assert (await get(asker, path(LAYER))).status_code == 404
    assert [each.digest for each in sources[0].asked] == [Digest.of(third)]


async def test_several_ranges_are_followed_too(start_node: Any, sources: list[GrowingSource], tmp_path: Path) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    response = await get(asker, path(LAYER), range="bytes=5-9")
    assert (response.status_code, response.content) == (206, LAYER[5:10])
