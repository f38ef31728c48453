"""The whole cluster in one page: what is asked, what it may cost, and what hostile or broken nodes make of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from html.parser import HTMLParser
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from web.crowd import address, crowd

from spegel_consul.peers import PeerError
from spegel_consul.web.cluster import cluster_page, cluster_survey, node_summary
from spegel_consul.web.cluster.cluster_facts import MOST_NAMES, ClusterFacts, NodeRow
from spegel_consul.web.cluster.cluster_survey import ClusterSurvey
from spegel_consul.web.cluster.metrics_ports import MetricsPorts
from spegel_consul.web.cluster.node_summary import BadSummary, NodeSummary
from spegel_consul.web.node_views import Node
from spegel_consul.web.web_app import build_app


def member(number: int) -> str:
    return f"12D3KooW{number:044}"


class Peers:
    """Answers for :func:`cluster_survey._ask`; ``hangs`` are numbers of nodes that do not answer."""

    def __init__(self, answer: Callable[[int], NodeSummary]) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.hangs: set[int] = set()
        self.at_once = self.most_at_once = 0

    async def __call__(self, client: object, peer: dict[str, Any], at: tuple[str, int]) -> NodeSummary:
        number = int(peer["id"][-8:])
        assert at == (address(number), 9090)
        self.asked.append(number)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await trio.sleep(2.0 if number in self.hangs else 0.01)
        finally:
            self.at_once -= 1
        if number in self.hangs:
            raise PeerError("did not answer within 2 s")
        return self.answer(number)


def well(number: int, **given: Any) -> NodeSummary:
    found = {"name": f"own{number}", "version": "1.0", "ready": True, "leader": member(3), "day_hits": 9} | given
    return NodeSummary(id=member(number), day_misses=1, day_bytes=1 << 30, **found)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Peers:
    made = Peers(well)
    monkeypatch.setattr(cluster_survey, "_ask", made)
    return made


def survey(node: Node) -> ClusterSurvey:
    return ClusterSurvey(node, MetricsPorts(node))


async def page(node: Node, path: str = cluster_page.PATH) -> str:
    response = await build_app(node).test_client().get(path)
    assert response.status_code == 200
    return (await response.get_data()).decode()


def rows(text: str, section: str) -> list[str]:
    body = text.partition(f'id="{section}-rows"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.sub(r"<[^>]*>|\s+", " ", row) for row in body.split("<tr>")[1:]]


# What is asked


async def test_all_nodes_are_in_it_and_one_that_fails_is_a_row_with_its_reason(
    peers: Peers, autojump_clock: MockClock
) -> None:
    peers.hangs = {7}
    facts = await survey(crowd(12)).look()
    by_name = {row.name: row for row in facts.rows}
    assert len(facts.rows) == 1 + 12 + 2
    assert facts.answered == 1 + 11
    assert by_name["nomad-client-0007"].reason == "did not answer within 2 s"
    assert by_name["nomad-client-0512"].reason == "healthy in the catalog, and not in the ring"
    assert by_name["nomad-client-0004"].page == f"http://{address(4)}:9090/debug/web/"
    assert facts.leaders[0] == ("nomad-client-0003", 12)
    assert (facts.hits, facts.requests, facts.saved) == (99, 110, 11 << 30)
    assert [row.rank for row in facts.by_trouble] == sorted(row.rank for row in facts.rows)


async def test_a_thousand_nodes_are_asked_a_few_at_a_time_and_one_round_serves_all_who_look(
    peers: Peers, autojump_clock: MockClock
) -> None:
    shared = survey(crowd(999))
    seen: list[ClusterFacts] = []

    async def look() -> None:
        seen.append(await shared.look())

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(look)
    alive = sum(member.alive for member in crowd(999).ring.view())
    assert len(peers.asked) == alive
    assert peers.most_at_once == cluster_survey.MOST_AT_ONCE
    assert all(found is seen[0] for found in seen)
    await trio.sleep(len(seen[0].rows) / cluster_survey.RATE - 1)
    await look()
    assert len(peers.asked) == alive, "still fresh: a large cluster is asked less often"
    await trio.sleep(1)
    await look()
    assert len(peers.asked) == 2 * alive


async def test_a_round_ends_and_nodes_that_hung_are_asked_last(peers: Peers, autojump_clock: MockClock) -> None:
    hang = set(range(100, 400))
    peers.hangs = set(hang)
    shared = survey(crowd(420))
    began = trio.current_time()
    facts = await shared.look()
    assert trio.current_time() - began == pytest.approx(cluster_survey.ROUND)
    reasons = {row.reason for row in facts.rows if row.summary is None and row.peer["state"] == "alive"}
    assert reasons == {"did not answer within 2 s", "did not answer within the 8 s of this round"}
    for _ in range(5):  # each round finds some more of those that hang
        await trio.sleep(20)
        facts = await shared.look()
    answered = [number for number in range(1, 421) if number % 40 != 39 and number not in hang]
    assert facts.answered == 1 + len(answered), "those that hang cost nobody else's row"


async def test_at_most_so_many_nodes_are_asked(peers: Peers, autojump_clock: MockClock) -> None:
    facts = await survey(crowd(cluster_survey.MOST_NODES + 500)).look()
    assert len(peers.asked) <= cluster_survey.MOST_NODES
    assert sum("not asked" in row.reason for row in facts.rows) > 400


async def test_names_that_only_the_nodes_know_are_used_everywhere(peers: Peers, autojump_clock: MockClock) -> None:
    node = crowd(5)
    node.consul = None
    await survey(node).look()
    assert [peer["node"] for peer in node.peers()] == ["nomad-client-0000", *(f"own{number}" for number in range(1, 6))]


# A peer's answers

HERE = "127.0.0.1"
RIGHT = {"id": member(1), "name": "n1", "ready": True}


@asynccontextmanager
async def server(answer: bytes, hang: bool = False) -> AsyncIterator[tuple[str, int]]:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            assert (await stream.receive_some(1 << 16)).startswith(b"GET /api/summary HTTP/1.1\r\n")
            try:
                await stream.send_all(answer)
            except trio.BrokenResourceError:
                return
            if hang:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HERE))
        yield HERE, listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def answered(document: object, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(answer: bytes, hang: bool = False) -> NodeSummary | str:
    """The summary, or the reason why there is none."""
    client = cluster_survey.PeerClient(cluster_survey._LIMITS)
    async with server(answer, hang) as at:
        try:
            with trio.fail_after(60):
                return await cluster_survey._ask(client, {"id": member(1)}, at)
        except (PeerError, BadSummary) as exc:
            return str(exc)
        finally:
            client.close()


async def test_a_node_that_is_right() -> None:
    assert await ask(answered(RIGHT)) == NodeSummary(id=member(1), name="n1", ready=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answered(b"", "404 Not Found"), "an older version"),
        (answered(b"no", "500 No"), "status 500"),
        (answered(b"\xff\xfe"), "no spegel-consul"),
        (answered(b"[" * 100_000), "no spegel-consul"),
        (answered([]), "no summary"),
        (answered({"name": "n1"}), "no summary"),
        (answered({**RIGHT, "id": member(2)}), "another node answers"),
        (answered({**RIGHT, "day_bytes": "1"}), "day_bytes of the summary is no number"),
        (answered({**RIGHT, "followers": -1}), "out of range"),
        (answered({**RIGHT, "ready": 1}), "ready of the summary is no boolean"),
        (answered({**RIGHT, "images": [["a"]]}), "no name and digest"),
        (answered({**RIGHT, "transfers": [1]}), "no object"),
        (answered({**RIGHT, "warnings": "x"}), "no list"),
        (answered(b" " * (200 << 10)), "too long"),
        (b"SSH-2.0-x\r\n\r\n", "did not answer in HTTP"),
        (b"", "closed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_node_that_is_wrong(answer: bytes, reason: str) -> None:
    assert reason in str(await ask(answer))


async def test_a_node_that_hangs_in_its_answer() -> None:
    assert "sent nothing for 1 s" in str(await ask(answered(RIGHT)[:-5], hang=True))


def test_lists_and_texts_are_cut_where_they_are_read() -> None:
    found = NodeSummary.parse(
        {
            **RIGHT,
            "name": "x" * 10_000,
            "warnings": ["w" * 10_000] * 50,
            "images": [["i" * 10_000, "d" * 10_000]] * 5000,
            "follows": [{"image": "f" * 10_000}] * 500,
            "unknown": [{}],
            "uptime": 1.5,
        }
    )
    assert len(json.dumps(dataclasses.asdict(found))) < 70_000
    assert found.uptime == 1


async def test_what_a_node_says_of_itself_is_what_others_read() -> None:
    node = crowd(5, images=120)
    node.metrics.mirror_requests.labels("docker.io", "hit").inc(5)
    found = NodeSummary.parse(json.loads(json.dumps(node_summary.of(node))))
    assert (found.name, found.ready, found.members, found.day_hits) == (node.name, node.problem() is None, 5, 5)
    assert (found.image_count, len(found.images)) == (120, node_summary.MOST_IMAGES)
    assert found.leader == member(3)


# The facts and the page


def row(number: int, **given: Any) -> NodeRow:
    peer = {"id": member(number), "node": f"n{number}", "state": "alive", "registry": None, "leader": False}
    return NodeRow(peer, None, well(number, **given))


def test_images_say_how_many_nodes_have_them_and_whether_the_tag_has_moved() -> None:
    facts = ClusterFacts(
        [
            row(1, images=(("app:v1", "a"), ("old", "x"))),
            row(2, images=(("app:v1", "b"),)),
            row(3, images=(("app:v1", "b"),), image_count=5, version="0.9", zone="z1", peer_tls="prefer"),
        ]
    )
    assert [(image.name, image.digests, list(image.nodes)) for image in facts.images] == [
        ("app:v1", 2, [0, 1, 2]),
        ("old", 1, [0]),
    ]
    assert facts.unlisted == 4
    assert facts.versions == [("1.0", 2), ("0.9", 1)]
    assert (facts.zones, facts.encrypted, facts.alarmed) == ([("z1", 1)], 1, 0)


def test_a_node_can_invent_names_only_up_to_a_limit() -> None:
    invented = [row(node, images=tuple((f"i{node}-{n}", "d") for n in range(100))) for node in range(80)]
    assert len(ClusterFacts(invented).images) == MOST_NAMES


async def test_a_thousand_nodes_make_pages_of_fifty_rows(peers: Peers, autojump_clock: MockClock) -> None:
    node = crowd(999, images=500)
    images = tuple((image["name"], str(image["digest"])) for image in node.images())
    peers.answer = lambda number: well(number, images=images[number % 9 :: 9])
    text = await page(node)
    assert len(text) < 200_000
    assert len(rows(text, "nodes")) == cluster_page.MOST_ROWS
    assert all(" dead " in each or " missing " in each for each in rows(text, "nodes")[:26]), "trouble comes first"
    assert len(rows(text, "images")) == cluster_page.MOST_IMAGES
    assert "Page 1 of 21" in text
    last = await page(node, f"{cluster_page.PATH}?page=21")
    assert 0 < len(rows(last, "nodes")) <= cluster_page.MOST_ROWS
    assert "Page 21 of 21" in await page(node, f"{cluster_page.PATH}?page=99999")
    for wrong in ("-1", "x", "", "9" * 400, "%C2%B2"):
        assert "Page 1 of 21" in await page(node, f"{cluster_page.PATH}?page={wrong}")
    assert len(rows(await page(node, f"{cluster_page.PATH}?find=CLIENT-0177"), "nodes")) == 1
    assert "page=2" in await page(node, f"{cluster_page.PATH}?find=nomad")


class Markup(HTMLParser):
    """The elements and attributes that are really there, and the texts outside of a direction of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.open: list[str] = []
        self.loose = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value or "" for name, value in attributes if name in ("href", "src", "action")}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"bdi", "text", "title"}.intersection(self.open):  # texts of a drawing stand alone
            self.loose += data


LINK = re.compile(r"/|\?|#main\Z|http://10\.[0-9.]+:9090/debug/web/\Z")
HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><svg onload=alert(1)>',
    "' onfocus='alert(1)' autofocus='",
    "javascript:alert(1)",
    "{{ facts }}{% raw %}",
    "a" * 10_240,
    "\u202egnp.exe",
    "\x00\x1b[2J\r\nx",
]


async def test_hostile_names_are_text_in_a_direction_of_their_own(peers: Peers, autojump_clock: MockClock) -> None:
    node = crowd(len(HOSTILE) + 2)
    assert node.consul is not None
    node.consul = None  # so that the nodes' own words are their names

    def hostile(number: int) -> NodeSummary:
        nasty = HOSTILE[number % len(HOSTILE)]
        document = dict.fromkeys(("name", "version", "zone", "leader", "peer_tls", "reason"), nasty)
        images = [[nasty, nasty], [f"{nasty}{number}", nasty]]
        return NodeSummary.parse({"id": member(number), **document, "warnings": [nasty] * 9, "images": images})

    peers.answer = hostile
    for path in (cluster_page.PATH, f"{cluster_page.PATH}?find=%3Cscript%3E", "/debug/web/"):
        text = await page(node, path)
        markup = Markup()
        markup.feed(text)
        assert markup.scripts == 1, "the page's own"
        assert not {name for name in markup.attributes if name.startswith("on") or name == "autofocus"}
        assert not {
            link for link in markup.links if not re.match(r"/|\?|#main\Z|http://10\.[0-9.]+:9090/debug/web/\Z", link)
        }
        assert "\u202e" not in markup.loose
        assert "a" * 400 not in text
        assert len(text) < 200_000


async def test_the_api_has_the_same_facts(peers: Peers, autojump_clock: MockClock) -> None:
    client = build_app(crowd(5)).test_client()
    found = json.loads(await (await client.get("/api/cluster")).get_data())
    assert (found["answered"], len(found["nodes"])) == (6, 8)
    own = json.loads(await (await client.get("/api/summary")).get_data())
    assert NodeSummary.parse(own).name == "nomad-client-0000"


def test_half_a_surrogate_pair_of_a_node_can_be_shown() -> None:
    half = json.loads('"a\\ud800b"')
    parsed = NodeSummary.parse({"id": member(1), "name": half, "warnings": [half], "images": [[half, half]]})
    assert parsed.name == "a?b"
    repr(parsed).encode()


async def test_nodes_that_are_gone_are_forgotten(
    peers: Peers, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = crowd(12)
    shared, members = survey(node), node.peers()
    peers.hangs = set(range(12))
    await shared._round()
    assert len(shared._failed) > 5
    monkeypatch.setattr(Node, "peers", lambda _: members[:3])
    await shared._round()
    assert len(shared._failed) <= 3
