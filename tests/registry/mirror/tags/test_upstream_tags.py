"""A tag is checked at its registry before it is sent: what the registry says, and what it must never be sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.http import bounded_client
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.tags import upstream_tags
from spegel_consul.registry.mirror.tags.upstream_tags import TagCheck, UpstreamTags
from spegel_consul.registry.mirror.validate_head import Head

from ...image import LAYER, MANIFEST, MANIFEST_DIGEST, TAG_PATH, get

APP = Reference("docker.io", "library/app", tag="v1")
OTHER = Digest.of(b"moved")
RUNTIME = {"user-agent": "containerd/2.1"}
Handler = Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Awaitable[httpx.Response]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"WITHIN": 1.0, "FRESH": 0.5, "DOWN": 1.0}.items():
        monkeypatch.setattr(upstream_tags, name, seconds)


class Registry:
    """A registry of one tag. ``answers`` replaces its answer; ``asked`` are the requests, also those for tokens."""

    def __init__(self, digest: Digest = MANIFEST_DIGEST, realm: str = "") -> None:
        self.digest = digest
        self.realm = realm
        self.asked: list[httpx.Request] = []
        self.answers: Callable[[httpx.Request], Any] | None = None
        self.tags = UpstreamTags(lambda: bounded_client.client(transport=httpx.MockTransport(self._answer)))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        await trio.lowlevel.checkpoint()
        if self.answers is not None:
            found = self.answers(request)
            return found if isinstance(found, httpx.Response) else await found
        if request.method == "GET":
            return httpx.Response(200, json={"token": "t0k3n"})
        if self.realm and request.headers.get("authorization") != "Bearer t0k3n":
            challenge = f'Bearer realm="{self.realm}",service="registry.docker.io",scope="repository:x:push"'
            return httpx.Response(401, headers={"www-authenticate": challenge})
        assert request.method == "HEAD"
        assert "application/vnd.oci.image.index.v1+json" in request.headers["accept"]
        # the length of the manifest, of which no byte is sent
        return httpx.Response(200, headers={"docker-content-digest": self.digest, "content-length": "7143"})

    @property
    def urls(self) -> list[str]:
        return [str(request.url) for request in self.asked]


async def test_the_registry_says_the_same_or_another_digest() -> None:
    registry = Registry()
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME
    assert await registry.tags.check(APP, OTHER, None) is TagCheck.MOVED
    assert registry.urls == ["https://registry-1.docker.io/v2/library/app/manifests/v1"], "one answer for both"
    await trio.sleep(upstream_tags.FRESH)
    registry.digest = OTHER
    assert await registry.tags.check(APP, OTHER, None) is TagCheck.SAME
    other = Reference("registry.example:5443", "a/b", tag="v1")
    await registry.tags.check(other, OTHER, None)
    assert registry.urls[-1] == "https://registry.example:5443/v2/a/b/manifests/v1"


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (httpx.Response(404), TagCheck.MOVED),
        (httpx.Response(403), TagCheck.DENIED),
        (httpx.Response(401), TagCheck.DENIED),
        (httpx.Response(429), TagCheck.UNREACHABLE),
        (httpx.Response(500), TagCheck.UNREACHABLE),
        (httpx.Response(302, headers={"location": "https://evil.example/"}), TagCheck.UNREACHABLE),
        (httpx.Response(200), TagCheck.UNREACHABLE),
        (httpx.Response(200, headers={"docker-content-digest": "sha256:nonsense"}), TagCheck.UNREACHABLE),
        (httpx.Response(200, headers={"docker-content-digest": "x" * 90_000}), TagCheck.UNREACHABLE),
    ],
)
async def test_other_answers(answer: httpx.Response, result: TagCheck) -> None:
    registry = Registry()
    registry.answers = lambda _: answer
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is result
    assert len(registry.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_registry_that_answers_nobody_is_asked_once(status: int) -> None:
    registry = Registry()
    registry.answers = lambda _: httpx.Response(status)
    for reference in (APP, APP, Reference("docker.io", "library/other", tag="v1")):
        assert await registry.tags.check(reference, MANIFEST_DIGEST, None) is TagCheck.UNREACHABLE
    assert len(registry.asked) == 1
    await trio.sleep(upstream_tags.DOWN)
    registry.answers = None
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME


@pytest.mark.parametrize("answer", [httpx.Response(302, headers={"location": "/"}), httpx.Response(200)])
async def test_a_tag_of_which_the_registry_says_nothing_is_asked_for_once(answer: httpx.Response) -> None:
    registry = Registry()
    registry.answers = lambda _: answer
    for _ in range(3):
        assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.UNREACHABLE
    assert len(registry.asked) == 1
    await registry.tags.check(Reference("docker.io", "library/other", tag="v1"), MANIFEST_DIGEST, None)
    assert len(registry.asked) == 2, "it may say something of another tag"


async def test_a_registry_that_hangs_is_waited_for_once() -> None:
    registry = Registry()
    registry.answers = lambda _: trio.sleep_forever()
    began = trio.current_time()
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.UNREACHABLE
    assert trio.current_time() - began < upstream_tags.WITHIN + 0.5
    asked = len(registry.asked)
    other = Reference("docker.io", "library/other", tag="v1")
    assert await registry.tags.check(other, MANIFEST_DIGEST, None) is TagCheck.UNREACHABLE
    assert len(registry.asked) == asked
    registry.answers = None
    assert await registry.tags.check(Reference("ghcr.io", "a/b", tag="v1"), MANIFEST_DIGEST, None) is TagCheck.SAME
    await trio.sleep(upstream_tags.DOWN)
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME


async def test_a_registry_without_a_connection_is_unreachable() -> None:
    registry = Registry()

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    registry.answers = refuse
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.UNREACHABLE


async def test_a_crowd_shares_one_question() -> None:
    registry = Registry()
    results: list[TagCheck] = []

    async def ask() -> None:
        results.append(await registry.tags.check(APP, MANIFEST_DIGEST, None))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert results == [TagCheck.SAME] * 100
    assert len(registry.asked) <= upstream_tags.MOST


async def test_an_anonymous_token_is_fetched_once() -> None:
    registry = Registry(realm="https://auth.docker.io/token")
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME
    assert [request.method for request in registry.asked] == ["HEAD", "GET", "HEAD"]
    token = registry.asked[1].url
    assert (token.host, token.path) == ("auth.docker.io", "/token")
    assert dict(token.params) == {"service": "registry.docker.io", "scope": "repository:library/app:pull"}
    await trio.sleep(upstream_tags.FRESH)
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME
    assert len(registry.asked) == 4


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.docker.io/token",
        "https://169.254.169.254/latest",
        "https://auth.evil.example/token",
        "https://docker.io.evil.example/token",
        "https://notdocker.io/token",
        "https://user:pass@evil.example/token",
        "https://[::1/token",
        "file:///etc/passwd",
        "",
    ],
)
async def test_tokens_are_not_fetched_from_other_places(realm: str) -> None:
    registry = Registry(realm=realm or "x")
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) in (TagCheck.DENIED, TagCheck.UNREACHABLE)
    assert [request.method for request in registry.asked] == ["HEAD"]


@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 50_000, b'{"token": 5}', b'{"token": "a\\r\\nx: y"}', b"{}"])
async def test_a_token_that_is_none_is_not_used(body: bytes) -> None:
    registry = Registry()
    challenge = {"www-authenticate": 'Bearer realm="https://auth.docker.io/t"'}
    registry.answers = lambda request: (
        httpx.Response(200, content=body) if request.method == "GET" else httpx.Response(401, headers=challenge)
    )
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) in (TagCheck.DENIED, TagCheck.UNREACHABLE)
    assert all("authorization" not in request.headers for request in registry.asked)


async def test_the_clients_credentials_go_to_the_registry_only() -> None:
    registry = Registry(realm="https://auth.docker.io/token")
    assert await registry.tags.check(APP, MANIFEST_DIGEST, "Basic c2VjcmV0") is TagCheck.MOVED, "refused: 404"
    registry.answers = lambda _: httpx.Response(307, headers={"location": "https://evil.example/"})
    assert await registry.tags.check(APP, MANIFEST_DIGEST, "Basic b3RoZXI=") is TagCheck.UNREACHABLE
    assert {request.url.host for request in registry.asked} == {"registry-1.docker.io"}
    registry.answers = None
    registry.realm = ""
    assert await registry.tags.check(APP, MANIFEST_DIGEST, None) is TagCheck.SAME, "the refusal was that client's"


# Through the node


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def holder(start_node: Any, age: float = 60) -> Any:
    node = await start_node()
    fill(node, age)
    return node


def fill(node: Any, age: float = 60) -> None:
    node.store.add_content(LAYER)
    node.store.add_content(b"{}")
    node.store.add_image("docker.io/library/app:v1", MANIFEST, age)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_of_a_peer_is_sent_if_the_registry_says_the_same(
    start_node: Any, registry: Registry, method: str
) -> None:
    asker = await start_node(upstream_tags=registry.tags)
    asker.router.knows(await holder(start_node))
    response = await get(asker, TAG_PATH, method, **RUNTIME)
    assert (response.status_code, response.headers["x-spegel-tag-check"]) == (200, "same")
    assert asker.metric("spegel_tag_checks_total", {"result": "same"}) == 1
    with trio.fail_after(5):  # a trace ends after the last byte has left
        while not asker.mirror.traces.over:
            await trio.sleep(0.01)
    assert asker.mirror.traces.over[-1].to_json()["tag_check"] == "same"
    by_digest = f"/v2/library/app/manifests/{MANIFEST_DIGEST}?ns=docker.io"
    assert "x-spegel-tag-check" not in (await get(asker, by_digest, **RUNTIME)).headers
    assert len(registry.asked) == 1


async def test_a_tag_that_has_moved_is_left_to_the_runtime(start_node: Any, registry: Registry) -> None:
    registry.digest = OTHER
    asker = await start_node(upstream_tags=registry.tags)
    asker.router.knows(await holder(start_node))
    response = await get(asker, TAG_PATH, **RUNTIME)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
    assert asker.metric("spegel_mirror_requests_total", {"registry": "docker.io", "cache": "miss"}) == 1


async def test_a_tag_that_the_registry_has_confirmed_is_as_young_as_that(start_node: Any, registry: Registry) -> None:
    """A peer's tag was refused, so the runtime has written the old digest again, from the registry."""
    asker = await start_node(upstream_tags=registry.tags)
    for data in (LAYER, b"{}"):
        asker.store.add_content(data)
    name = "docker.io/library/app:v1"
    asker.mirror.peers.tag_ages.passed_on(name, Head(MANIFEST_DIGEST, "", 0, 1, 1, False, tag_age=36000))
    asker.store.add_image(name, MANIFEST, 0)
    reference = Reference("docker.io", "library/app", tag="v1")
    assert (asker.mirror.peers.tag_ages.own(reference) or 0) >= 36000
    newer = json.dumps(json.loads(MANIFEST) | {"annotations": {"version": "2"}}).encode()
    other = await start_node()
    fill(other)
    other.store.add_image(name, newer, 60)
    asker.router.knows(other)
    assert (await get(asker, TAG_PATH, **RUNTIME)).status_code == 404
    asker.store.add_image(name, MANIFEST, 0)
    assert (asker.mirror.peers.tag_ages.own(reference) or 0) < 600


async def test_without_the_registry_the_tag_is_sent_and_says_so(start_node: Any, registry: Registry) -> None:
    registry.answers = lambda _: httpx.Response(503)
    asker = await start_node(upstream_tags=registry.tags)
    asker.router.knows(await holder(start_node))
    response = await get(asker, TAG_PATH, **RUNTIME)
    assert (response.content, response.headers["x-spegel-tag-check"]) == (MANIFEST, "unreachable")
    assert asker.metric("spegel_tag_checks_total", {"result": "unreachable"}) == 1


async def test_an_own_tag_is_checked_for_clients_and_not_for_peers(start_node: Any, registry: Registry) -> None:
    registry.digest = OTHER
    node = await start_node(upstream_tags=registry.tags)
    fill(node)
    assert (await get(node, TAG_PATH, **{"x-spegel-mirrored": "true"})).content == MANIFEST
    assert registry.asked == []
    assert (await get(node, TAG_PATH)).status_code == 404
    assert len(registry.asked) == 1


async def test_credentials_for_this_node_are_none_for_the_registry(
    start_node: Any, registry: Registry, tmp_path: Any
) -> None:
    file = tmp_path / "passwords"
    file.write_text("node:secret\n")
    sent = "Basic " + base64.b64encode(b"node:secret").decode()
    node = await start_node(upstream_tags=registry.tags, credentials=Credentials(file))
    fill(node)
    assert (await get(node, TAG_PATH, authorization=sent)).status_code == 200
    open_node = await start_node(upstream_tags=registry.tags)
    fill(open_node)
    assert (await get(open_node, TAG_PATH, authorization=sent)).status_code == 200
    assert [request.headers.get("authorization") for request in registry.asked] == [None, sent]


@pytest.mark.parametrize("memory", ["_said", "_tokens"])
async def test_what_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch, memory: str) -> None:
    monkeypatch.setattr(upstream_tags, "_TOKEN_LIFE", upstream_tags.FRESH)
    registry = Registry(realm="https://auth.docker.io/token")
    for number in range(3):
        await registry.tags.check(Reference("docker.io", f"library/app{number}", tag="v1"), MANIFEST_DIGEST, None)
    await trio.sleep(upstream_tags.FRESH)
    for number in range(3, 5):
        await registry.tags.check(Reference("docker.io", f"library/app{number}", tag="v1"), MANIFEST_DIGEST, None)
    assert len(getattr(registry.tags, memory)) == 2
