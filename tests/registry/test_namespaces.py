"""Which registry a client means, how it says so, and what is answered to who does not. Both paths."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter

from .conftest import NOT_FOUND, head
from .image import DIGEST, LAYER, MANIFEST, MANIFEST_DIGEST, get

DOCKERD = "docker/28.5.2+dfsg4 go/go1.27.1 UpstreamClient(Docker-Client/28.5.2)"
SKOPEO = "skopeo/1.9.3"
OTHERS = [
    SKOPEO,
    "containerd/2.1.9",
    "Docker/28",
    "docker",
    "x docker/28",
    "Docker-Client/28 (linux)",
    "buildkit/v0.19",
    "",
]
TAG = "/v2/library/app/manifests/v1"
BY_DIGEST = (f"/v2/library/app/manifests/{MANIFEST_DIGEST}", f"/v2/library/app/blobs/{DIGEST}")


def fill(node: Any) -> Any:
    node.store.add_content(LAYER)
    node.store.add_content(b"{}")
    node.store.add_image("docker.io/library/app:v1", MANIFEST)
    return node


async def ask(node: Any, *lines: str, method: str = "GET", path: str = TAG) -> tuple[int, bytes]:
    """Status and body of the answer to a request with just these header fields."""
    request = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")
    async with await trio.open_tcp_stream(*node.address) as stream:
        await stream.send_all(request)
        await stream.send_eof()
        received = b""
        with trio.fail_after(5):
            while data := await stream.receive_some(1 << 20):
                received += bytes(data)
    answer_head, _, body = received.partition(b"\r\n\r\n")
    return int(answer_head.split()[1]), body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("agent", OTHERS)
async def test_a_tag_without_its_registry_is_nobodys(start_node: Any, agent: str, method: str) -> None:
    """Else an image of quay.io that a client asks its mirror for is docker.io's of the same path."""
    node = fill(await start_node())
    for _ in range(2):
        status, body = await ask(node, f"User-Agent: {agent}", method=method)
        assert status == 404
        assert method == "HEAD" or b"MANIFEST_UNKNOWN" in body
        assert method == "HEAD" or b"ns=" in body
        # who is right about the registry gets it, before and after
        assert (await ask(node, f"User-Agent: {DOCKERD.replace('docker/', 'x/')}", path=f"{TAG}?ns=docker.io"))[
            0
        ] == 200
    assert node.router.asked == []


async def test_nobody_is_asked_for_a_tag_without_its_registry(pair: Any) -> None:
    _, asker = pair
    for field in ("User-Agent: skopeo/1.9.3", "X-Spegel-Mirrored: true", "Accept: */*"):
        assert (await ask(asker, field))[0] == 404
    assert asker.router.asked == []


async def test_dockerd_means_docker_io(pair: Any) -> None:
    holder, asker = pair
    for node in (holder, asker):
        response = await get(node, TAG, **{"user-agent": DOCKERD})
        # its own runtime asks whether a tag has moved, so it is looked up elsewhere
        assert response.status_code == (200 if node is asker else 404)
    assert asker.router.asked == holder.router.asked == ["docker.io/library/app:v1"]


async def test_what_is_remembered_of_one_client_is_no_answer_to_another(start_node: Any) -> None:
    """``X-Spegel-Mirrored`` keeps the question of the node's own runtime here, so that it is answered at once."""
    node = fill(await start_node())
    for _ in range(3):
        assert (await ask(node, f"User-Agent: {DOCKERD}", "X-Spegel-Mirrored: true")) == (200, MANIFEST)
        assert (await ask(node, f"User-Agent: {SKOPEO}", "X-Spegel-Mirrored: true"))[0] == 404
        assert (await ask(node, "OCI-Namespace: docker.io")) == (200, MANIFEST)
        assert (await ask(node, "OCI-Namespace: quay.io", "X-Spegel-Mirrored: true"))[0] == 404
        assert (await ask(node))[0] == 404


@pytest.mark.parametrize("written", ["docker.io", "index.docker.io", "registry-1.docker.io", "DOCKER.io"])
async def test_a_registry_is_known_by_its_other_names(pair: Any, written: str) -> None:
    holder, asker = pair
    for node in (holder, asker):
        for path in (TAG, *BY_DIGEST):
            assert (await get(node, f"{path}?ns={written}")).status_code == 200
            assert (await get(node, path, **{"oci-namespace": written})).status_code == 200
    assert set(asker.router.asked) == {"docker.io/library/app:v1", MANIFEST_DIGEST, DIGEST}
    with trio.fail_after(5):  # counted after the last byte has left
        while asker.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "hit"}) != 6:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("lines", "query", "status"),
    [
        (("OCI-Namespace: docker.io",), "", 200),
        (("oci-nameSPACE:docker.io",), "", 200),
        (("OCI-Namespace: quay.io",), "?ns=docker.io", 200),
        (("OCI-Namespace: docker.io",), "?ns=quay.io", 404),
        (("OCI-Namespace: docker.io", "OCI-Namespace: docker.io"), "", 400),
        (("OCI-Namespace: docker.io", "OCI-Namespace: quay.io"), "", 400),
        (("OCI-Namespace: quay.io", "oci-namespace: docker.io"), "", 400),
        (("OCI-Namespace: quay.io", f"User-Agent: {DOCKERD}"), "", 404),
        (("OCI_Namespace: docker.io",), "", 404),
        (("OCI-Namespace: ",), "", 404),
        (("OCI-Namespace: docker.io/library",), "", 400),
        (("OCI-Namespace: docker%2Eio",), "", 400),
        ((f"User-Agent: {SKOPEO}", f"User-Agent: {DOCKERD}"), "", 404),
        ((f"User-Agent: {SKOPEO}",), "?ns=docker.io&ns=quay.io", 400),
        ((f"User-Agent: {SKOPEO}",), "?ns=docker.io&ns=docker.io", 200),
        ((f"User-Agent: {SKOPEO}",), "?n%73=docker%2eio", 200),
        ((f"User-Agent: {SKOPEO}",), "?NS=docker.io", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_ways_to_say_the_registry(
    start_node: Any, lines: tuple[str, ...], query: str, status: int, method: str
) -> None:
    node = fill(await start_node())
    for _ in range(2):
        found, body = await ask(node, *lines, "X-Spegel-Mirrored: true", method=method, path=TAG + query)
        assert found == status
        assert body == MANIFEST if (method, status) == ("GET", 200) else MANIFEST not in body


@pytest.mark.parametrize("agent", [DOCKERD, SKOPEO])
async def test_a_digest_needs_no_registry(start_node: Any, agent: str) -> None:
    images = ImageFilter.build(["docker.io"], ["^(?!docker[.]io/)"])
    holder, asker = fill(await start_node(images=images)), await start_node(images=images)
    asker.router.knows(holder)
    for node in (holder, asker):
        for path in BY_DIGEST:
            for method in ("GET", "HEAD"):
                assert (await get(node, path, method, **{"user-agent": agent})).status_code == 200
    label = "docker.io" if agent == DOCKERD else "unknown"
    with trio.fail_after(5):  # counted after the last byte has left
        while asker.metric("spegel_mirror_requests_total", {"registry": label, "cache": "hit"}) != 4:
            await trio.sleep(0.01)
    assert {each.registry for each in asker.mirror.traces.over} == {label}


async def test_a_registry_that_is_named_is_held_against_the_filters(start_node: Any) -> None:
    node = fill(await start_node(images=ImageFilter.build(["quay.io"])))
    for path in BY_DIGEST:
        assert (await get(node, path)).status_code == 200
        assert (await get(node, f"{path}?ns=docker.io")).status_code == 404
        assert (await get(node, path, **{"oci-namespace": "docker.io"})).status_code == 404
        # dockerd mirrors docker.io and nothing else
        assert (await get(node, path, **{"user-agent": DOCKERD})).status_code == 404


async def test_a_peer_is_told_a_registry_and_holds_none_against_a_digest(start_node: Any, start_peer: Any) -> None:
    """Spegel refuses who names none, so one is named that may be wrong; what is served the peer's index has judged."""
    asker, peer = await start_node(), await start_peer(head(200, len(LAYER)), LAYER)
    asker.router.knows(peer.address)
    path = f"/v2/library/app/blobs/{DIGEST}"
    for query, told in (("", b"docker.io"), ("?ns=Quay.io", b"quay.io"), ("?ns=index.docker.io", b"docker.io")):
        peer.requests.clear()
        assert (await get(asker, path + query)).content == LAYER
        assert peer.requests[0].startswith(b"GET %b?ns=%b HTTP/1.1\r\n" % (path.encode(), told))
    holder = fill(await start_node(images=ImageFilter.build(["quay.io"])))
    asker.router.knows(holder)
    assert (await get(asker, path)).content == LAYER
    tag = await get(holder, f"{TAG}?ns=docker.io", **{"x-spegel-mirrored": "true"})
    assert tag.status_code == 404


async def test_a_digest_that_nobody_has(start_node: Any, start_peer: Any) -> None:
    asker, peer = await start_node(), await start_peer(NOT_FOUND)
    asker.router.knows(peer.address)
    absent = Digest.of(b"absent")
    response = await get(asker, f"/v2/library/app/blobs/{absent}")
    assert response.status_code == 404
    assert f"library/app@{absent}" in response.json()["errors"][0]["message"]
    assert asker.metric("spegel_mirror_requests_total", {"registry": "unknown", "cache": "miss"}) == 1
