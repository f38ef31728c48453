"""A manifest for a client that does not fall back is sent only if all of the image is there. Both paths."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_INDEX, OCI_MANIFEST
from spegel_consul.oci.platforms import this_architecture, this_variants
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.promises.whole_images import WITHIN, Required, required
from spegel_consul.ring.dht.claim_reports import Verdict, What
from spegel_consul.store.manifest_walk import ManifestInvalid

from ..conftest import NOT_FOUND, head
from ..image import DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST, get
from .following.growing_source import DownloadingStore

CONFIG_DIGEST = Digest.of(b"{}")
NAME = "docker.io/library/app"
TAG = f"/v2/{NAME}/manifests/v1"
BY_DIGEST = f"/v2/{NAME}/manifests/{MANIFEST_DIGEST}"
BLOB = f"/v2/{NAME}/blobs/{DIGEST}"
PODMAN = "containers/5.24.1 (github.com/containers/image)"
AGENTS = [PODMAN, "skopeo/1.9.3", "cri-o/1.31.0 go/go1.23 os/linux", "Buildah/1.37.0", "libpod/5.2.0"]


def fill(node: Any, *contents: bytes, manifest: bytes = MANIFEST) -> Any:
    for each in contents:
        node.store.add_content(each)
    node.store.add_image(f"{NAME}:v1", manifest)
    return node


def index_of(*entries: tuple[bytes, str | None]) -> bytes:
    manifests: list[dict[str, Any]] = []
    for body, architecture in entries:
        entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": Digest.of(body), "size": len(body)}
        if architecture is not None:
            entry["platform"] = {"os": "linux", "architecture": architecture}
        manifests.append(entry)
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


OTHER = MANIFEST + b"\n"
INDEX = index_of((MANIFEST, this_architecture()), (OTHER, "s390x"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_whole_image_is_answered_by_all_who_have_a_part(start_node: Any, method: str) -> None:
    first, second, asker = await start_node(), await start_node(), await start_node()
    fill(first, b"{}")
    fill(second, LAYER)
    asker.router.knows(first, second)
    response = await get(asker, BY_DIGEST, method)
    assert response.status_code == 200
    assert response.headers["docker-content-digest"] == MANIFEST_DIGEST
    assert response.content == (MANIFEST if method == "GET" else b"")
    assert (await get(asker, BLOB)).content == LAYER
    assert {CONFIG_DIGEST, DIGEST} <= set(asker.router.asked)


@pytest.mark.parametrize("own", [False, True], ids=["a neighbour's", "the node's own"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_layer_that_nobody_has_makes_the_manifest_unknown(start_node: Any, own: bool, method: str) -> None:
    holder, asker = fill(await start_node(), b"{}"), await start_node()
    asker.router.knows(holder)
    node = holder if own else asker
    for path in (TAG, BY_DIGEST, BY_DIGEST):
        response = await get(node, path, method)
        assert response.status_code == 404
    if method == "GET":
        error = response.json()["errors"][0]
        assert error["code"] == "MANIFEST_UNKNOWN"
        assert DIGEST in error["message"]
    holder.store.add_content(LAYER)
    assert (await get(node, TAG, method)).status_code == 200


@pytest.mark.parametrize("agent", AGENTS)
async def test_clients_are_known_by_their_name_too(start_node: Any, agent: str) -> None:
    node = fill(await start_node(), b"{}")
    path = f"/v2/library/app/manifests/{MANIFEST_DIGEST}"
    assert (await get(node, path, **{"user-agent": agent})).status_code == 404
    assert (await get(node, f"{path}?ns=docker.io", **{"user-agent": agent})).status_code == 404


@pytest.mark.parametrize("agent", ["containerd/2.1.9", "docker/28.5", "curl/8", "buildkit/v0.19"])
async def test_clients_that_fall_back_get_what_is_there(start_node: Any, agent: str) -> None:
    node = fill(await start_node(), b"{}")
    path = f"/v2/library/app/manifests/{MANIFEST_DIGEST}?ns=docker.io"
    assert (await get(node, path, **{"user-agent": agent})).content == MANIFEST
    assert node.router.asked == []


async def test_a_peer_is_answered_what_is_there(start_node: Any) -> None:
    """The node that asks has checked the image, and knows other peers."""
    node = fill(await start_node(), b"{}")
    path = f"{BY_DIGEST}?ns=docker.io"
    assert (await get(node, path, **{"user-agent": PODMAN, "x-spegel-mirrored": "true"})).content == MANIFEST
    assert node.router.asked == []


async def test_the_neighbours_that_the_ring_names_must_say_that_they_have_it(start_node: Any, start_peer: Any) -> None:
    stale = await start_peer(NOT_FOUND)
    node = fill(await start_node(), b"{}")
    node.router.knows(stale.address)
    assert (await get(node, BY_DIGEST)).status_code == 404
    assert stale.requests[0].startswith(b"HEAD ")


async def test_an_index_needs_the_image_of_this_platform(start_node: Any) -> None:
    holder, asker = await start_node(), await start_node()
    fill(holder, b"{}", MANIFEST, manifest=INDEX)
    asker.router.knows(holder)
    for node in (holder, asker):
        assert (await get(node, TAG)).status_code == 404
    holder.store.add_content(LAYER)
    for node in (holder, asker):
        assert (await get(node, TAG)).content == INDEX
        assert (await get(node, BY_DIGEST)).content == MANIFEST


async def test_an_index_without_an_image_of_this_platform(start_node: Any) -> None:
    node = fill(await start_node(), b"{}", LAYER, OTHER, manifest=index_of((OTHER, "s390x")))
    response = await get(node, TAG)
    assert response.status_code == 404
    assert "no image for linux/" in response.json()["errors"][0]["message"]


async def test_what_was_confirmed_is_not_asked_for_again_at_once(start_node: Any) -> None:
    holder, asker = fill(await start_node(), b"{}", LAYER, MANIFEST, manifest=INDEX), await start_node()
    asker.router.knows(holder)
    assert (await get(asker, TAG)).content == INDEX
    asked = asker.router.asked.count(DIGEST)
    assert (await get(asker, BY_DIGEST)).content == MANIFEST
    assert asker.router.asked.count(DIGEST) == asked == 1


async def test_questions_are_asked_at_the_same_time_and_end(start_node: Any) -> None:
    """Ten lookups that never end cost one deadline."""
    layers = [bytes([number]) * 10 for number in range(10)]
    named = [{"digest": Digest.of(each), "size": 10, "mediaType": "a/b"} for each in layers]
    manifest = json.dumps({**json.loads(MANIFEST), "layers": named}).encode()
    node = fill(await start_node(), b"{}", manifest=manifest)
    node.router.providers = [None]
    began = trio.current_time()
    assert (await get(node, f"/v2/{NAME}/manifests/{Digest.of(manifest)}")).status_code == 404
    assert trio.current_time() - began < WITHIN
    assert len(node.router.asked) == 10


async def test_a_neighbour_that_leaves_after_the_promise_is_replaced(start_node: Any, start_peer: Any) -> None:
    holder, asker = fill(await start_node(), LAYER), fill(await start_node(), b"{}")
    dying = await start_peer(lambda request: [head(200, len(LAYER)), *([LAYER[:99]] if request[:3] == b"GET" else [])])
    asker.router.knows(dying.address)
    assert (await get(asker, BY_DIGEST)).content == MANIFEST
    asker.router.knows(dying.address, holder)
    with capture_logs() as logs:
        assert (await get(asker, BLOB)).content == LAYER
    assert not [line for line in logs if line["event"] == "a part of a promised image is gone"]
    assert any(request.startswith(b"GET ") for request in dying.requests)


async def test_a_promise_that_nobody_can_keep_is_in_the_log(start_node: Any) -> None:
    holder, asker = fill(await start_node(), b"{}", LAYER), await start_node()
    asker.router.knows(holder)
    assert (await get(asker, TAG)).content == MANIFEST
    holder.store.remove_content(DIGEST)
    with capture_logs() as logs:
        assert (await get(asker, BLOB)).status_code == 404
        absent = f"/v2/{NAME}/blobs/{Digest.of(b'absent')}"
        assert (await get(asker, absent)).status_code == 404  # never promised
    lines = [line for line in logs if line["event"] == "a part of a promised image is gone"]
    assert [(line["image"], line["digest"]) for line in lines] == [(f"{NAME}:v1", DIGEST)]


@pytest.mark.parametrize(
    ("architecture", "has", "machine", "wanted"),
    [
        ("amd64", ["", "v2"], "x86_64", [""]),
        ("amd64", ["v2", "v3"], "x86_64", ["v2", "v3"]),
        ("arm64", ["v8"], "aarch64", ["v8"]),
        ("arm64", ["v9", ""], "aarch64", [""]),
        ("arm", ["v5", "v6", "v7"], "armv7l", ["v7"]),
        ("arm", ["v5", "v6", "v7"], "armv8l", ["v7"]),
        ("arm", ["v5", "v7", "v6"], "armv6l", ["v6"]),
        ("arm", ["", "v5", "v7"], "armv6l", ["v5"]),
    ],
)
def test_of_several_variants_only_the_one_that_the_machine_runs_best_is_required(
    monkeypatch: pytest.MonkeyPatch, architecture: str, has: list[str], machine: str, wanted: list[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    bodies = [b"image for %s" % variant.encode() for variant in has]
    index = json.loads(index_of(*((body, architecture) for body in bodies)))
    for entry, variant in zip(index["manifests"], has, strict=True):
        if variant:
            entry["platform"]["variant"] = variant
    found = required(json.dumps(index).encode(), this_architecture(), this_variants())
    best = [Digest.of(body) for body, variant in zip(bodies, has, strict=True) if variant in wanted]
    assert found == Required(manifests=tuple(best))


def test_what_is_required() -> None:
    assert required(MANIFEST, "amd64") == Required(blobs=(CONFIG_DIGEST, DIGEST))
    foreign = json.loads(MANIFEST)
    foreign["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    assert required(json.dumps(foreign).encode(), "amd64") == Required(blobs=(CONFIG_DIGEST,))
    index = index_of((MANIFEST, "amd64"), (OTHER, "arm64"))
    assert required(index, "arm64") == Required(manifests=(Digest.of(OTHER),))
    assert required(index_of((MANIFEST, None), (OTHER, "arm64")), "amd64") == Required(manifests=(MANIFEST_DIGEST,))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"manifests": []}', index_of((MANIFEST, "arm64"))])
def test_what_can_not_be_whole(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        required(body, "amd64")


def test_too_many_parts() -> None:
    layers = [{"digest": Digest.of(b"%d" % n), "size": 1, "mediaType": "a/b"} for n in range(600)]
    with pytest.raises(ManifestInvalid, match="parts"):
        required(json.dumps({**json.loads(MANIFEST), "layers": layers}).encode(), "amd64")


async def test_a_question_for_a_part_is_no_download_that_a_keeper_hears_of(start_node: Any, tmp_path: Path) -> None:
    store = DownloadingStore(tmp_path / "asker")
    store.download(b"another image's")
    holder, asker = await start_node(), await start_node(settings=MirrorSettings(follow=True), store=store)
    holder.store.add_content(INDEX, OCI_INDEX)
    asker.router.knows(holder)
    reports: list[object] = []

    async def keeper(_: str, report: object) -> Verdict:
        reports.append(report)
        return Verdict(What.ALONE, (), 1.0)

    asker.router.keeper = keeper
    path = f"/v2/{NAME}/manifests/{Digest.of(INDEX)}"
    assert (await get(asker, path, **{"user-agent": PODMAN})).status_code == 404
    assert Digest.of(MANIFEST) in asker.router.asked, "the index came, and its image was asked for"
    assert not reports
