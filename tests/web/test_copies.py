"""How many nodes have an image: what the ring says, counted now and then, and what all nodes say together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner, Result
from fakes.memory_store import MemoryStore
from web.test_node import Ring, node

from spegel_consul.cli import cli
from spegel_consul.commands import sidecar_client
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider, RingError
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web.copies import cluster_copies, own_copies
from spegel_consul.web.copies.own_copies import Count, OwnCopies
from spegel_consul.web.node_views import Node
from spegel_consul.web.web_app import build_app

APP, BASE, ODD = (f"docker.io/library/{name}:v1" for name in ("app", "base", "odd"))


@dataclass
class RingOfCopies(Ring):
    """peer2 is alive and peer3 dead; ``holders`` are the providers by key, "hangs" and "fails" what they say."""

    holders: dict[str, list[str]] = field(default_factory=dict)
    lookups: list[str] = field(default_factory=list)

    @contextmanager
    def lookup(self, key: str, *, count: int = 3) -> Iterator[AsyncIterator[Provider]]:
        self.lookups.append(key)

        async def found() -> AsyncIterator[Provider]:
            await trio.lowlevel.checkpoint()
            for holder in self.holders.get(key, [])[:count]:
                if holder == "hangs":
                    await trio.sleep_forever()
                if holder == "fails":
                    raise RingError("the ring is not running")
                yield Provider(holder, ("10.0.0.2", 5000))

        yield found()


def image(store: MemoryStore, name: str) -> str:
    """Put a small image in; return the digest of its manifest."""
    config = store.add_content(json.dumps({"of": name}).encode())
    manifest = {"schemaVersion": 2, "config": {"digest": config, "size": len(json.dumps({"of": name}))}, "layers": []}
    return store.add_image(name, json.dumps(manifest).encode())


@pytest.fixture
def made() -> tuple[Node, dict[str, str]]:
    """A node with three images, and their digests by name."""
    made = node("10.0.0.1", "10.0.0.2")
    made.ring = RingOfCopies()
    assert isinstance(made.store, MemoryStore)
    digests = {name: image(made.store, name) for name in (APP, BASE, ODD)}
    return made, digests


async def test_an_image_that_no_living_node_has_is_here_only(made: tuple[Node, dict[str, str]]) -> None:
    shown, digests = made
    shown.ring.holders = {digests[BASE]: ["peer2"], digests[ODD]: ["peer3"]}  # type: ignore[attr-defined]
    copies = OwnCopies(shown)
    assert copies.only_here is None
    found = await copies.fewer_than(2)
    assert [(each["name"], [holder["node"] for holder in each["nodes"]]) for each in found["images"]] == [
        (APP, ["n1"]),
        (ODD, ["n1"]),
    ]
    assert (found["counted"], found["unknown"], found["left_out"]) == (3, 0, 0)
    assert copies.only_here == 2
    shown.store.remove_image(ODD)  # type: ignore[attr-defined]
    assert copies.only_here == 1, "an image that is gone since the count is not to be lost any more"


async def test_more_copies_than_two_are_looked_for_if_they_are_asked_for(made: tuple[Node, dict[str, str]]) -> None:
    shown, digests = made
    shown.ring.holders = {digests[APP]: ["peer2", "peer5", "peer6"]}  # type: ignore[attr-defined]
    copies, counts = OwnCopies(shown), []
    for wanted in (2, 3, 4, 5):
        found = await copies.fewer_than(wanted)
        counts.append([each["name"] for each in found["images"]].count(APP))
    assert counts == [0, 0, 0, 1]
    assert len(shown.ring.lookups) == 3 * 3, "a count answers all questions that need no more"  # type: ignore[attr-defined]


async def test_a_peer_that_asks_for_the_last_count_waits_for_no_other(made: tuple[Node, dict[str, str]]) -> None:
    shown, digests = made
    lookups = shown.ring.lookups  # type: ignore[attr-defined]
    copies = OwnCopies(shown)
    others: dict[Digest, tuple[str, ...] | None] = {Digest(digest): () for digest in digests.values()}
    copies._count = Count(others, 2, trio.current_time() - 300, 0)
    for wanted in (2, 3):
        found = await copies.fewer_than(wanted, last=True)
        assert (len(found["images"]), found["age"], lookups) == (3, 300, [])
    assert (await copies.fewer_than(2))["age"] == 0
    assert len(lookups) == 3, "a person who asks this node alone gets a fresh count"
    await copies.fewer_than(4, last=True)
    assert len(lookups) == 6, "the last count did not look for so many"


async def test_the_last_count_follows_the_images_and_the_nodes_that_have_died(
    made: tuple[Node, dict[str, str]],
) -> None:
    shown, digests = made
    assert isinstance(shown.ring, RingOfCopies)
    shown.ring.holders = {digests[BASE]: ["peer2"], digests[ODD]: ["peer2"]}
    copies = OwnCopies(shown)
    others: dict[Digest, tuple[str, ...] | None] = {Digest(digests[APP]): ("peer3",), Digest(digests[BASE]): ("peer2",)}
    copies._count = Count(others, 2, trio.current_time() - 300, 0)
    async with copies._counting:  # a fresh count takes half a minute
        with trio.fail_after(5):
            found = await copies.fewer_than(2, last=True)
    assert [each["name"] for each in found["images"]] == [APP], "its other node is dead"
    assert sorted(shown.ring.lookups) == sorted([digests[APP], digests[ODD]]), "ODD is new"
    assert found["counted"] == 3


async def test_members_are_not_gone_through_for_each_image(
    made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _ = made
    assert isinstance(shown.store, MemoryStore)
    digests = [image(shown.store, f"docker.io/library/many:v{number}") for number in range(40)]
    shown.ring.holders = {digest: ["peer2"] for digest in digests}  # type: ignore[attr-defined]
    views: list[RingOfCopies] = []
    view = RingOfCopies.view

    def counted(ring: RingOfCopies) -> tuple[MemberView, ...]:
        views.append(ring)
        return view(ring)

    monkeypatch.setattr(RingOfCopies, "view", counted)
    found = await OwnCopies(shown).fewer_than(2)
    assert (found["counted"], len(found["images"])) == (43, 3)
    assert len(views) == 1, "for the names in the answer"


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_an_image_that_could_not_be_looked_up_is_not_called_the_last(
    made: tuple[Node, dict[str, str]], trouble: str
) -> None:
    shown, digests = made
    shown.ring.holders = {digest: [trouble] for digest in digests.values()}  # type: ignore[attr-defined]
    copies = OwnCopies(shown)
    found = await copies.fewer_than(2)
    assert (found["images"], found["unknown"], copies.only_here) == ([], 3, 0)


async def test_the_background_counts_seldom_and_in_small_batches(
    made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _ = made
    monkeypatch.setattr(own_copies, "_FIRST", 1.0)
    monkeypatch.setattr(own_copies, "INTERVAL", 50.0)
    monkeypatch.setattr(own_copies, "BATCH", 1)
    monkeypatch.setattr(own_copies, "MOST", 2)
    copies = OwnCopies(shown)
    lookups = shown.ring.lookups  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        await nursery.start(copies.run)
        began = trio.current_time()
        while copies.only_here is None:
            await trio.sleep(0.05)
        assert trio.current_time() - began >= 1.0 + own_copies.PAUSE
        assert len(lookups) == 2
        found = await copies.fewer_than(2)
        assert (found["counted"], found["left_out"], len(lookups)) == (2, 1, 2)
        nursery.cancel_scope.cancel()


async def test_the_routes(made: tuple[Node, dict[str, str]]) -> None:
    copies = OwnCopies(made[0])
    client = build_app(made[0], copies).test_client()
    headers = {"host": "10.0.0.1:9090"}
    copies._count = Count({}, 2, trio.current_time() - 300, 0)
    found = json.loads(await (await client.get("/api/copies?fewer=2&last=1", headers=headers)).get_data())
    assert (found["counted"], round(found["age"])) == (3, 300)
    found = json.loads(await (await client.get("/api/copies?fewer=2", headers=headers)).get_data())
    assert len(found["images"]) == 3
    for text in ("0", "1", "21", "-2", "x", "9" * 5000, "２"):
        assert (await client.get("/api/copies", query_string={"fewer": text}, headers=headers)).status_code == 400
    foreign = headers | {"origin": "http://evil.example"}
    assert (await client.post("/api/copies", headers=foreign)).status_code == 403


Handler = Callable[[httpx.Request], httpx.Response]


async def of_the_cluster(shown: Node, handler: Handler, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The document of all nodes, where ``handler`` answers for peer2, the only living peer."""
    monkeypatch.setattr(cluster_copies.httpx, "AsyncHTTPTransport", lambda **_: httpx.MockTransport(handler))
    shown.consul = None
    return await cluster_copies.fewer_than(shown, OwnCopies(shown), 2)


async def test_all_nodes_tell_their_own(made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://10.0.0.2:9090/api/copies?fewer=2"
        there = {"name": "ghcr.io/a/b:v1", "digest": "sha256:0", "size": 7, "nodes": [{"id": "peer2", "node": "n2"}]}
        return httpx.Response(200, json={"images": [there]})

    found = await of_the_cluster(made[0], answer, monkeypatch)
    assert (found["asked"], found["failed"]) == (2, [])
    assert [each["name"] for each in found["images"]] == [APP, BASE, ODD, "ghcr.io/a/b:v1"]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_nodes_that_are_asked_in_turns_answer_from_their_last_counts(
    made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(cluster_copies, "MOST_PEERS", at_once)
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("last"))
        return httpx.Response(200, json={"images": []})

    found = await of_the_cluster(made[0], answer, monkeypatch)
    assert (asked, found["last"]) == ([["1"], [None]][at_once - 1], at_once == 1)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, b"{}", "older version"),
        (500, b"", "status 500"),
        (200, b"[" * 100_000, "did not answer with a count"),
        (200, b'{"images": 5}', "did not answer with a count"),
        (200, b'"x' + b"y" * (3 << 20) + b'"', "can't be asked"),
    ],
)
async def test_a_node_that_answers_something_else_is_named(
    made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, why: str
) -> None:
    found = await of_the_cluster(made[0], lambda _: httpx.Response(status, content=body), monkeypatch)
    assert len(found["images"]) == 3
    assert why in found["failed"][0]["problem"]


async def test_malformed_images_of_a_peer_are_left_out(
    made: tuple[Node, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = {"id": "peer2", "node": None}
    good = {"name": "a", "digest": "sha256:0", "size": 7, "nodes": [holder]}
    changes: list[dict[str, object]] = [{"name": 5}, {"digest": None}, {"size": True}, {"nodes": []}, {"nodes": [[]]}]
    changes += [{"name": "n" * 600}, {"nodes": [{"id": "i" * 600}]}]
    bad = [good | change for change in changes]
    peer = httpx.Response(200, json={"images": [*bad, 5, None, good | {"nodes": [holder] * 99}]})
    found = await of_the_cluster(made[0], lambda _: peer, monkeypatch)
    theirs = [each for each in found["images"] if each["digest"] == "sha256:0"]
    assert [(each["name"], len(each["nodes"])) for each in theirs] == [("a", 20)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command against a node that answers ``found``; ``run.asked`` is what it was asked."""

    def run(found: Any, *words: str) -> Result:
        def get(node: str, path: str, *, method: str = "GET", timeout: float = 10.0, **query: str) -> Any:
            run.asked = (method, path, query)  # type: ignore[attr-defined]
            return found

        monkeypatch.setattr(sidecar_client, "get", get)
        return CliRunner().invoke(cli, ["images", *words])

    return run


def row(name: str, *nodes: str) -> dict[str, Any]:
    return {"name": name, "digest": "sha256:0", "size": 2048, "nodes": [{"id": each, "node": each} for each in nodes]}


def test_the_command_says_what_would_be_lost_with_which_node_and_what_mends_it(run: Any) -> None:
    done = run({"images": [row(APP, "n1"), row(BASE, "n1"), row(ODD, "n1", "n2")]}, "--fewer-than", "3")
    assert done.exit_code == 0, done.output
    assert run.asked == ("GET", "/api/copies", {"fewer": "3"})
    assert "2 images are on n1 only, and would be lost with it" in done.output
    assert f"spegel-consul preheat {APP} --nodes 3" in done.output
    assert "no image is on fewer than 2 nodes" in run({"images": []}, "--fewer-than", "2").output


def test_the_command_says_that_counts_are_not_fresh(run: Any) -> None:
    found = {"images": [row(APP, "n1")], "asked": 300, "failed": []}
    assert "last counts" in run(found | {"last": True}, "--fewer-than", "2", "--all").stderr
    for fresh in (found, found | {"last": False}):
        assert run(fresh, "--fewer-than", "2", "--all").stderr == ""


def test_the_command_fails_if_a_node_could_not_be_asked(run: Any) -> None:
    failed = [{"node": "n\x1b2", "id": "x", "problem": "it hangs"}]
    done = run({"images": [], "asked": 2, "failed": failed}, "--fewer-than", "2", "--all")
    assert run.asked[0] == "POST"
    assert done.exit_code == 1
    assert "n�2: it hangs" in done.output
    assert "1 of 2 nodes could not be asked" in done.output


def test_without_a_number_the_images_are_listed(run: Any) -> None:
    assert APP in run([{"name": APP, "digest": "sha256:0", "size": 2048, "parts": 3}]).output
    assert run([], "--all").exit_code == 2
