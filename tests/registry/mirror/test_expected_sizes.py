"""Sizes that manifests name are hints: they make this node verify, and never refuse an honest answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.oci.path import ContentRequest, Kind
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror import expected_sizes as module
from spegel_consul.registry.mirror.expected_sizes import Sizes
from spegel_consul.registry.mirror.fetch import race
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import spool

from ..conftest import head
from ..image import BLOB_PATH, DIGEST, LAYER, get

LIMIT = len(LAYER) // 2
STREAMS_LAYER = MirrorSettings(verify_first=LIMIT)
"""With these the layer is too large to be held, unless its size is disputed."""


def manifest(*blobs: object, **fields: object) -> bytes:
    layers = [{"digest": blob[0], "size": blob[1]} if isinstance(blob, tuple) else blob for blob in blobs]
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": layers, **fields}
    return json.dumps(fields).encode()


def learnt(*manifests: bytes) -> Sizes:
    sizes = Sizes()
    for each in manifests:
        sizes.learn(each)
    return sizes


def test_a_size_is_what_manifests_agree_upon() -> None:
    sizes = learnt(manifest(("a", 5), ("b", 0), config={"digest": "c", "size": 7}), manifest(("a", 5)))
    assert [sizes.get(name) for name in "abcd"] == [5, 0, 7, None]
    assert not sizes.disputes("a", 5)
    assert sizes.disputes("a", 6)
    assert sizes.disputes("b", 1)
    assert not sizes.disputes("d", 6)


@pytest.mark.parametrize("manifests", [(manifest(("a", 5)), manifest(("a", 6))), (manifest(("a", 5), ("a", 6)),)])
def test_manifests_that_disagree_leave_every_size_in_doubt(manifests: tuple[bytes, ...]) -> None:
    """Also if one of them comes again."""
    sizes = learnt(*manifests, manifests[-1], manifests[0])
    assert sizes.get("a") is None
    assert sizes.disputes("a", 5)
    assert sizes.disputes("a", 6)
    assert sizes.disputes("a", -1)


ABSURD = [True, False, -1, -(1 << 70), (1 << 53) + 1, 10**400, 5.0, 1e300, "5", None, [5], {"size": 5}]


@pytest.mark.parametrize("size", ABSURD, ids=lambda size: repr(size)[:20])
def test_what_is_no_size_says_nothing(size: object) -> None:
    assert not learnt(manifest(("a", size))).disputes("a", 5)
    assert learnt(manifest(("a", 5)), manifest(("a", size))).get("a") == 5


def test_what_is_no_descriptor_says_nothing() -> None:
    junk: list[object] = [None, 5, "a", [], {}, {"digest": 5, "size": 5}, {"digest": "x" * 201, "size": 5}]
    sizes = learnt(
        manifest(*junk, ("a", 5)),
        manifest(layers=None, config=None),
        manifest(layers={"digest": "b", "size": 5}, config=[1]),
        manifest(manifests=[{"digest": "b", "size": 5}]),
        b"{}",
    )
    assert sizes.get("a") == 5
    assert not sizes.disputes("b", 6)


def test_what_is_remembered_is_bounded() -> None:
    sizes = learnt(manifest(*[(f"a{number}", 5) for number in range(600)]))
    assert (sizes.get("a510"), sizes.get("a511")) == (5, None)  # the config is one of the 512
    for number in range(0, 4000, 400):
        sizes.learn(manifest(*[(f"b{number + each}", 6) for each in range(400)]))
    assert sizes.get("a1") is None
    assert sizes.get("b3999") == 6
    assert len(sizes._sizes) == module._MOST
    sizes.learn(manifest(("c", 5), annotations={"x": "y" * module._LARGEST}))
    assert sizes.get("c") is None


def lies(size: int) -> bytes:
    """A manifest that says that the layer has ``size`` bytes."""
    return manifest((DIGEST, size), annotations={"size": str(size)})


TRUE = lies(len(LAYER))


async def learn(node: Any, start_peer: Any, *manifests: bytes) -> None:
    """Pull these manifests through ``node``, whoever has them."""
    for each in manifests:
        digest = Digest.of(each)
        peer = await start_peer(head(200, len(each), f"Docker-Content-Digest: {digest}"), each)
        node.router.knows(peer.address)
        response = await get(node, f"/v2/library/app/manifests/{digest}?ns=docker.io")
        assert (response.status_code, response.content) == (200, each)


POISONS = {
    "smaller": (lies(77),),
    "larger": (lies(40 << 20),),
    "smaller, then true": (lies(77), TRUE),
    "true, then larger": (TRUE, lies(40 << 20)),
    "largest": (lies(1 << 53),),
}
both = pytest.mark.parametrize("settings", [MirrorSettings(), STREAMS_LAYER], ids=["held", "streamed"])
poisoned = pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)


@both
@poisoned
async def test_an_honest_answer_is_never_refused_for_its_size(
    start_node: Any, start_peer: Any, settings: MirrorSettings, poison: tuple[bytes, ...]
) -> None:
    holder, asker = await start_node(), await start_node(settings=settings)
    holder.store.add_content(LAYER)
    await learn(asker, start_peer, *poison)
    asker.router.knows(holder)
    for _ in range(2):  # the second one is asked over a connection that is kept
        for method, wanted, status, body in (
            ("HEAD", {}, 200, b""),
            ("GET", {}, 200, LAYER),
            ("GET", {"range": "bytes=1000-"}, 206, LAYER[1000:]),
        ):
            response = await get(asker, BLOB_PATH, method, **wanted)
            assert (response.status_code, response.content) == (status, body)
        assert response.headers["content-range"] == f"bytes 1000-{len(LAYER) - 1}/{len(LAYER)}"
    assert asker.metric("spegel_verify_first_total", {"result": "verified"}) == 2
    assert not asker.mirror.peers.penalties.bars(asker.router.providers[0])


def junk(size: int) -> tuple[bytes, ...]:
    return head(200, size, f"Docker-Content-Digest: {DIGEST}"), bytes(size)


LIES = {
    "as long as it is": lambda: junk(len(LAYER)),
    "larger than is held": lambda: junk(len(LAYER) + 5000),
    "larger, and leaves": lambda: (junk(len(LAYER) + 5000)[0], bytes(300_000)),
    "tiny": lambda: junk(77),
    "smaller": lambda: junk(len(LAYER) - 5000),
}


@pytest.mark.parametrize("poison", [(lies(77),), (TRUE, lies(len(LAYER) + 5000)), (lies(len(LAYER) + 5000), TRUE)])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_liar_gains_nothing_by_a_manifest_of_its_own(
    start_node: Any, start_peer: Any, poison: tuple[bytes, ...], lie: Callable[[], tuple[bytes, ...]]
) -> None:
    """Its bytes are not sent, not even a first part of them, and the honest node's are."""
    holder, asker = await start_node(), await start_node(settings=STREAMS_LAYER)
    holder.store.add_content(LAYER)
    await learn(asker, start_peer, *poison)
    liar = await start_peer(*lie())
    asker.router.knows(liar.address, holder)
    response = await get(asker, BLOB_PATH)
    assert (response.status_code, response.content) == (200, LAYER)
    assert len(liar.requests) == 1
    assert asker.metric("spegel_transfers_cut_total") == 0


async def test_a_part_is_taken_from_the_peer_that_the_manifest_agrees_with(start_node: Any, start_peer: Any) -> None:
    holder, asker = await start_node(), await start_node()
    holder.store.add_content(LAYER)
    await learn(asker, start_peer, TRUE)
    liar = await start_peer(head(206, 10, f"Content-Range: bytes 100-109/{len(LAYER) - 1}"), bytes(10))
    asker.router.knows(liar.address, holder)
    response = await get(asker, BLOB_PATH, range="bytes=100-109")
    assert (response.status_code, response.content) == (206, LAYER[100:110])
    asker.router.knows(liar.address)
    asker.mirror.peers.recent._found.clear()
    response = await get(asker, BLOB_PATH, range="bytes=100-109")  # there is no other answer
    assert (response.status_code, response.content) == (206, bytes(10))


async def test_peers_that_disagree_with_each_other_are_verified(start_node: Any, start_peer: Any) -> None:
    """No manifest told; both answers are there when one is taken."""
    holder, asker = await start_node(), await start_node(settings=STREAMS_LAYER)
    holder.store.add_content(LAYER)
    liar = await start_peer(*junk(len(LAYER) + 5000))
    asker.router.knows(liar.address, holder)
    request = ContentRequest(Kind.BLOB, Reference("docker.io", "library/app", digest=DIGEST))
    async with race(asker.mirror.peers, request, "GET", asker.mirror.begin(request, "GET")) as fetch:
        for provider in asker.router.providers:
            await fetch._start(provider, None, None)
        with trio.fail_after(5):
            while len(fetch._answers) < 2:
                await fetch._wake.wait()
                fetch._wake = trio.Event()
        answer = await fetch.first(None)
    answer.body.discard()
    assert (answer.head.size, answer.head.disputed) == (len(LAYER), True)
    assert asker.mirror.peers.holds(answer.head)


async def test_what_is_too_large_for_the_room_is_streamed_and_takes_no_room_from_others(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, asker = await start_node(), await start_node(settings=STREAMS_LAYER)
    holder.store.add_content(LAYER)
    await learn(asker, start_peer, lies(77))
    asker.router.knows(holder)
    spare = 4 * len(LAYER) - 1
    monkeypatch.setattr(spool.SpoolSpace, "spare", lambda self: spare)
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_verify_first_total", {"result": "verified"}) == 0
    spare += 1
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_verify_first_total", {"result": "verified"}) == 1


async def test_a_claim_beyond_the_room_is_no_promise(start_node: Any, start_peer: Any) -> None:
    asker = await start_node()
    await learn(asker, start_peer, TRUE)
    liar = await start_peer(head(200, 1 << 62, f"Docker-Content-Digest: {DIGEST}"), bytes(300_000), then="hang")
    asker.router.knows(liar.address)
    async with httpx.AsyncClient(verify=False, base_url=asker.url, trust_env=False, timeout=10) as client:
        with trio.fail_after(5):
            async with client.stream("GET", BLOB_PATH) as response:
                assert response.status_code == 200
                assert asker.mirror.peers.spool_space.promised == 0


@pytest.mark.parametrize("claim", [1 << 40, len(LAYER)], ids=["beyond the room", "within it"])
async def test_a_digest_in_doubt_takes_no_more_room_than_a_size_in_dispute(
    start_node: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch, claim: int
) -> None:
    """Anybody can bring a digest in doubt, with two peers that leave and lie."""
    asker = await start_node(settings=STREAMS_LAYER)
    monkeypatch.setattr(spool.SpoolSpace, "spare", lambda self: 4 * len(LAYER))
    asker.mirror.peers.suspects.add(DIGEST, [Provider("peer", ("10.0.0.1", port)) for port in (1, 2)])
    promised: list[int] = []
    promise = asker.mirror.peers.spool_space.promise
    monkeypatch.setattr(
        asker.mirror.peers.spool_space, "promise", lambda *given: (promised.append(given[1]), promise(*given))
    )
    peer = await start_peer(head(200, claim, f"Docker-Content-Digest: {DIGEST}"), LAYER, then="hang")
    asker.router.knows(peer.address)
    async with httpx.AsyncClient(verify=False, base_url=asker.url, trust_env=False, timeout=20) as client:
        with trio.fail_after(20):
            async with client.stream("GET", BLOB_PATH) as response:
                assert response.status_code == 200
                assert int(response.headers["content-length"]) == claim
    assert promised[:1] == ([len(LAYER)] if claim == len(LAYER) else [])


async def test_without_a_thread_to_ask_the_disk_what_is_disputed_is_streamed(
    pair: Any, start_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, asker = pair
    blob = LAYER + LAYER
    digest = holder.store.add_content(blob)
    holder.store.file(digest)
    asker.mirror.peers.settings = replace(asker.mirror.peers.settings, verify_first=len(LAYER))
    asker.mirror.peers.sizes.learn(manifest((digest, 77)))

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    monkeypatch.setattr(trio._threads, "start_thread_soon", refuse)
    for _ in range(2):
        assert (await get(asker, f"/v2/library/app/blobs/{digest}?ns=docker.io")).content == blob


def test_the_room_that_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    space = spool.SpoolSpace(tmp_path)
    before = space.spare()
    assert before > 0
    space.promised += 1 << 50
    assert space.spare() < 0
    space._directories = []
    assert space.spare() == spool._IN_MEMORY - (1 << 50)
    space._directories = ["/nowhere"]
    assert space.spare() == -(1 << 50)
