"""A tag that nodes have at different digests: the newest is taken, and none that is too old."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.provider_cache import RecentProviders
from spegel_consul.registry.mirror.tags.age_limits import AgeLimit, AgeLimits
from spegel_consul.registry.mirror.tags.tag_ages import agree, newest, parse_age
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.store.union import UnionStore

from ...conftest import FileStore, head
from ...image import LAYER, MANIFEST, TAG_PATH, get

NAME = "docker.io/library/app:v1"
OLD = MANIFEST
NEW = json.dumps(json.loads(MANIFEST) | {"annotations": {"version": "2"}}).encode()
RUNTIME = {"user-agent": "containerd/2.1"}
HALF_AN_HOUR = MirrorSettings(tag_max_age=AgeLimits((AgeLimit(None, 1800.0),)))


async def holder(start_node: Any, manifest: bytes, age: float | None) -> Any:
    node = await start_node()
    node.store.add_content(LAYER)
    node.store.add_content(b"{}")
    node.store.add_image(NAME, manifest, age)
    return node


async def spegel(start_peer: Any, manifest: bytes, *extra: str, pause: float = 0.0) -> Any:
    """A peer that tells no age, unless ``extra`` does."""
    fields = ("Content-Type: application/json", f"Docker-Content-Digest: {Digest.of(manifest)}", *extra)
    return await start_peer(pause, head(200, len(manifest), *fields) + manifest)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_newest_of_two_is_taken(start_node: Any, order: Sequence[int]) -> None:
    since_an_hour, since_a_minute = await holder(start_node, OLD, 3600), await holder(start_node, NEW, 60)
    asker = await start_node()
    for path in ("fast", "remembered"):
        asker.mirror.peers.recent = RecentProviders()
        asker.router.knows(*[(since_an_hour, since_a_minute)[each] for each in order])
        response = await get(asker, TAG_PATH, **RUNTIME)
        assert (response.status_code, response.content) == (200, NEW), path
        assert 60 <= int(response.headers["x-spegel-tag-age"]) < 600
    assert asker.metric("spegel_tag_choices_total", {"choice": "newest"}) == 2


async def test_a_tag_that_a_second_namespace_pulled_again_is_sent(start_node: Any, tmp_path: Path) -> None:
    """Requests are remembered until the store changes."""
    namespaces = [FileStore(tmp_path / name) for name in ("k8s.io", "nomad")]
    for store, manifest, age in zip(namespaces, (OLD, NEW), (3600.0, 1800.0), strict=True):
        store.add_content(LAYER)
        store.add_content(b"{}")
        store.add_image(NAME, manifest, age)
    node = await start_node(store=UnionStore(namespaces))
    for _ in range(2):
        assert (await get(node, TAG_PATH)).content == NEW
    namespaces[0].add_image(NAME, OLD, 60.0)  # rolled back
    response = await get(node, TAG_PATH)
    assert response.content == OLD
    assert int(response.headers["x-spegel-tag-age"]) < 1800


async def test_two_that_agree_are_enough(start_node: Any, start_peer: Any) -> None:
    """A third one is not asked, and nothing is waited for."""
    asker = await start_node(settings=MirrorSettings(hedge=5.0))
    first, second = await holder(start_node, OLD, 3600), await holder(start_node, OLD, 60)
    third = await start_peer(then="hang")
    asker.router.knows(first, second)
    asker.router.providers += [None]  # the lookup does not end
    with trio.fail_after(3):
        assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
    assert third.requests == []
    assert asker.metric("spegel_tag_choices_total", {"choice": "agreed"}) == 1


async def test_a_crowd_of_requests_asks_one_peer_after_two_have_agreed(start_node: Any) -> None:
    asker = await start_node()
    holders = [await holder(start_node, OLD, 3600), await holder(start_node, OLD, 60)]
    asker.router.knows(*holders)
    for _ in range(4):
        assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
    sent = [each.metric("spegel_served_bytes_total", {"source": "own"}) for each in holders]
    assert sum(sent) == 5 * len(OLD)
    for each in holders:
        each.store.add_image(NAME, NEW, 1)
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW, "another digest is no agreement with the last one"


async def test_one_that_hangs_costs_the_hedge_interval(start_node: Any, start_peer: Any) -> None:
    asker = await start_node()
    silent = await start_peer(then="hang")
    asker.router.knows(silent.address, await holder(start_node, OLD, 3600))
    began = trio.current_time()
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
    assert trio.current_time() - began < 0.4


async def test_an_only_provider_is_not_waited_for_once_the_lookup_has_ended(start_node: Any) -> None:
    asker = await start_node(settings=MirrorSettings(hedge=5.0))
    asker.router.knows(await holder(start_node, OLD, 3600))
    for asked in (1, 1):  # the second request knows the provider of the first one, and looks nobody up
        with trio.fail_after(3):
            assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
        assert len(asker.router.asked) == asked
    assert asker.metric("spegel_tag_choices_total", {"choice": "only"}) == 2


@pytest.mark.parametrize("lie", ["-5", "", "1e9", "0x10", "9" * 11, "9" * 5000, "１２", "60.5"])
async def test_a_peer_that_tells_no_age_comes_after_those_that_do(start_node: Any, start_peer: Any, lie: str) -> None:
    asker = await start_node()
    unknown = await spegel(start_peer, NEW, f"X-Spegel-Tag-Age: {lie}".encode("latin-1", "replace").decode("latin-1"))
    asker.router.knows(unknown.address, await holder(start_node, OLD, 3600))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD


async def test_peers_that_tell_no_age_are_asked_as_before(start_node: Any, start_peer: Any) -> None:
    asker = await start_node()
    asker.router.knows((await spegel(start_peer, OLD)).address, (await spegel(start_peer, NEW, pause=0.05)).address)
    response = await get(asker, TAG_PATH, **RUNTIME)
    assert response.content == OLD
    assert "x-spegel-tag-age" not in response.headers


async def test_a_tag_that_is_too_old_is_left_to_upstream(start_node: Any, start_peer: Any) -> None:
    asker = await start_node(settings=HALF_AN_HOUR)
    asker.router.knows(await holder(start_node, OLD, 3600), (await spegel(start_peer, OLD)).address)
    response = await get(asker, TAG_PATH, **RUNTIME)
    assert response.status_code == 404
    assert "--tag-max-age" in response.text
    assert asker.metric("spegel_tag_choices_total", {"choice": "too_old"}) == 1
    by_digest = f"/v2/library/app/manifests/{Digest.of(OLD)}?ns=docker.io"
    assert (await get(asker, by_digest, **RUNTIME)).content == OLD, "the peers are not penalized"


async def test_of_two_the_one_within_the_limit_is_taken(start_node: Any) -> None:
    asker = await start_node(settings=HALF_AN_HOUR)
    asker.router.knows(await holder(start_node, OLD, 3600), await holder(start_node, NEW, 60))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW


async def test_the_own_tag_is_not_exchanged_for_an_older_one(start_node: Any) -> None:
    """The runtime asks whether its tag has moved; a node that has the former digest would set it back."""
    asker = await holder(start_node, NEW, 60)
    asker.router.knows(await holder(start_node, OLD, 3600))
    for _ in range(2):
        response = await get(asker, TAG_PATH, **RUNTIME)
        assert (response.status_code, response.content) == (200, NEW)
        assert "x-spegel-served-by" not in response.headers
    assert asker.metric("spegel_tag_choices_total", {"choice": "own"}) == 2


async def test_a_client_that_is_no_runtime_gets_the_own_tag_unless_it_is_too_old(start_node: Any) -> None:
    asker = await start_node(settings=HALF_AN_HOUR)
    for data in (LAYER, b"{}"):
        asker.store.add_content(data)
    asker.store.add_image(NAME, OLD, 60)
    assert (await get(asker, TAG_PATH)).content == OLD
    asker.store.add_image(NAME, OLD, 3600)
    assert (await get(asker, TAG_PATH)).status_code == 404
    peer = await get(asker, TAG_PATH, **{"x-spegel-mirrored": "true"})
    assert peer.content == OLD, "a peer has a limit of its own"
    assert int(peer.headers["x-spegel-tag-age"]) >= 3600


async def test_what_the_mirror_passed_on_does_not_get_younger(start_node: Any) -> None:
    """A stale tag that is pulled from a node is stale on the next node, too."""
    middle = await start_node()
    middle.router.knows(await holder(start_node, OLD, 3600))
    assert (await get(middle, TAG_PATH, **RUNTIME)).content == OLD
    for data in (LAYER, b"{}"):
        middle.store.add_content(data)
    middle.store.add_image(NAME, OLD, 0)  # the runtime has stored it now
    assert int((await get(middle, TAG_PATH)).headers["x-spegel-tag-age"]) >= 3600

    asker = await start_node()
    asker.router.knows(middle, await holder(start_node, NEW, 600))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW

    middle.router.knows()
    middle.mirror.peers.recent = RecentProviders()
    assert (await get(middle, TAG_PATH, **RUNTIME)).status_code == 404  # so the runtime asks upstream
    assert int((await get(middle, TAG_PATH)).headers["x-spegel-tag-age"]) >= 3600, "which may be down"
    middle.store.add_image(NAME, OLD, 0)
    assert int((await get(middle, TAG_PATH)).headers["x-spegel-tag-age"]) < 3600


async def test_a_tag_that_was_passed_on_is_not_newer_than_a_peers_new_one(start_node: Any) -> None:
    asker = await start_node()
    asker.router.knows(await holder(start_node, OLD, 3600))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
    for data in (LAYER, b"{}"):
        asker.store.add_content(data)
    asker.store.add_image(NAME, OLD, 0)
    asker.mirror.peers.recent = RecentProviders()
    asker.router.knows(await holder(start_node, NEW, 600))
    for _ in range(5):  # the pull fails, and is tried again
        assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW
    told = await get(asker, TAG_PATH, **{"x-spegel-mirrored": "true"})
    assert told.content == OLD
    assert int(told.headers["x-spegel-tag-age"]) >= 3600


async def test_another_client_that_is_sent_upstream_makes_no_tag_younger(start_node: Any) -> None:
    asker = await start_node(settings=HALF_AN_HOUR)
    for data in (LAYER, b"{}"):
        asker.store.add_content(data)
    asker.router.knows(await holder(start_node, OLD, 1798))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == OLD
    asker.store.add_image(NAME, OLD, 0)
    asker.router.knows()
    asker.mirror.peers.recent = RecentProviders()
    await trio.sleep(2)  # until it is too old
    for _ in range(2):
        assert (await get(asker, TAG_PATH)).status_code == 404


async def test_a_peer_that_knows_the_own_digest_for_longer_does_not_make_it_older(start_node: Any) -> None:
    asker = await holder(start_node, NEW, 60)
    asker.router.knows(await holder(start_node, NEW, 36000))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW
    asker.store.add_image(NAME, NEW, 0)  # the runtime has written it again
    assert 60 <= int((await get(asker, TAG_PATH)).headers["x-spegel-tag-age"]) < 3600
    asker.mirror.peers.recent = RecentProviders()
    asker.router.knows(await holder(start_node, OLD, 3600))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW


async def test_an_own_tag_that_is_sent_again_does_not_get_younger(start_node: Any) -> None:
    asker = await holder(start_node, NEW, 600)
    asker.router.knows(await holder(start_node, OLD, 3600))
    assert (await get(asker, TAG_PATH, **RUNTIME)).content == NEW
    asker.store.add_image(NAME, NEW, 0)  # the runtime has written it again
    assert int((await get(asker, TAG_PATH)).headers["x-spegel-tag-age"]) >= 600


async def test_a_digest_has_no_age(start_node: Any) -> None:
    node = await holder(start_node, OLD, 60)
    by_digest = f"/v2/library/app/manifests/{Digest.of(OLD)}?ns=docker.io"
    assert "x-spegel-tag-age" not in (await get(node, by_digest)).headers
    for method in ("GET", "HEAD", "GET"):
        assert int((await get(node, TAG_PATH, method)).headers["x-spegel-tag-age"]) >= 60


def _head(manifest: bytes, age: int | None) -> Head:
    return Head(Digest.of(manifest), "", 0, 1, 1, False, tag_age=age)


def test_the_choice() -> None:
    assert newest([_head(OLD, None), _head(NEW, 9), _head(OLD, 8), _head(NEW, 8)]) == 2
    assert newest([_head(OLD, None), _head(NEW, None)]) == 0
    assert not agree([_head(OLD, 1)])
    assert agree([_head(OLD, 1), _head(OLD, 2)])
    assert not agree([_head(OLD, 1), _head(NEW, 1)])
    assert [parse_age(text) for text in ("0", "3600", "400000000", None)] == [0, 3600, None, None]


def test_the_first_limit_that_fits_counts() -> None:
    limits = AgeLimits((AgeLimit(re.compile(r":v\d"), None), AgeLimit(re.compile(":latest$"), 0.0), AgeLimit(None, 60)))
    release, latest, prod = (Reference("docker.io", "library/app", tag=tag) for tag in ("v1.2", "latest", "prod"))
    assert [limits.of(each) for each in (release, latest, prod)] == [None, 0.0, 60]
    assert [limits.refuses(each, 59) for each in (release, latest, prod)] == [False, True, False]
    assert [limits.refuses(each, None) for each in (release, latest, prod)] == [False, True, True]
    assert limits.of(Reference("docker.io", "library/app", digest=Digest.of(OLD))) is None
