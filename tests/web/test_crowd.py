"""The page of a node in a large cluster: bounded, readable, and it finds what is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from lab.browser import browser
from quart_trio import QuartTrio
from web.crowd import LONG, Ring, crowd
from web.test_page import SHOTS

from spegel_consul.peers import PeerError
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web import formatting
from spegel_consul.web.cluster import cluster_survey
from spegel_consul.web.cluster.node_summary import NodeSummary
from spegel_consul.web.node_views import Node
from spegel_consul.web.pages import MOST_ROWS
from spegel_consul.web.web_app import build_app

FILES = ("/debug/web/style.css", "/debug/web/page.js", "/debug/web/icon.svg")


async def get(app: QuartTrio, path: str = "/debug/web/") -> str:
    response = await app.test_client().get(path)
    assert response.status_code == 200
    return (await response.get_data()).decode()


def rows(page: str, section: str) -> list[str]:
    """The texts of the rows of a list."""
    body = (
        page.partition(f'id="{section}-rows"')[2]
        .partition("</section>")[0]
        .partition("<tbody>")[2]
        .partition("</tbody>")[0]
    )
    return [re.sub(r"<[^>]*>|\s+", " ", row) for row in body.split("<tr>")[1:]]


async def test_a_thousand_members_and_five_hundred_images_do_not_make_it_longer() -> None:
    page = await get(build_app(crowd(999, images=500, requests=100)))
    assert len(page) < 300_000
    peers = rows(page, "peers")
    assert len(peers) == MOST_ROWS
    assert "this node" in peers[0]
    assert "leader" in peers[1]
    assert all(" dead " in peer or " missing " in peer for peer in peers[2:]), "who is away comes first"
    assert len(rows(page, "images")) == MOST_ROWS
    assert len(rows(page, "requests")) == 100
    assert f"{1002 - MOST_ROWS} more." in page
    assert page.count("<polygon") < 200


async def test_members_are_gone_through_as_often_for_many_images_as_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[Ring] = []
    view = Ring.view

    def counted(ring: Ring) -> tuple[MemberView, ...]:
        views.append(ring)
        return view(ring)

    monkeypatch.setattr(Ring, "view", counted)
    for images in (0, 30):
        views.clear()
        await get(build_app(crowd(50, images=images)))
        assert len(views) == 2, "for the page, and for the addresses of the other pages"


FINDS = [("CLIENT-0177", 1, 0), ("service-023:", 0, 1), ("10.0.0.9:", 1, 0), ("missing", 2, 0), ("%3Cscript>", 1, 0)]


async def test_one_is_found_by_a_part_of_what_is_known_of_it() -> None:
    app = build_app(crowd(199, images=30))
    for find, peers, images in FINDS:
        page = await get(app, f"/debug/web/?find={find}")
        assert (len(rows(page, "peers")), len(rows(page, "images"))) == (peers, images), find
        assert f"{peers} of 202" in page


async def test_a_small_cluster_is_shown_whole_and_by_name() -> None:
    page = await get(build_app(crowd(5, images=3)))
    assert "find-text" not in page
    assert len(rows(page, "peers")) == 8
    assert sum("nomad-client" in row for row in rows(page, "peers")) == 6


@pytest.mark.parametrize("name", ["a" * 14, "a" * 15, LONG])
def test_long_names_keep_both_ends(name: str) -> None:
    short = formatting.elided(name, 14)
    assert len(short) == min(14, len(name))
    assert (short[0], short[-1]) == (name[0], name[-1])
    image = formatting.image(f"registry.example.com/{name}@sha256:{'0' * 64}", 44)
    assert len(image) <= 44
    assert image.endswith("@sha256:" + "0" * 12)


SIZES = {"crowd-1000": (999, 500, 100), "crowd-100": (99, 30, 12), "crowd-24": (21, 3, 12)}


@pytest.fixture(scope="module")
def chromium(ring) -> Iterator[Any]:
    with browser(ring[1].netns, ring.lab.dir) as opened:
        yield opened


@pytest.fixture(scope="module")
def served() -> dict[str, dict[str, tuple[int, dict[str, str], bytes]]]:
    """What each of the nodes answers, by path."""

    async def answers(size: tuple[int, int, int]) -> dict[str, tuple[int, dict[str, str], bytes]]:
        node = crowd(*size)
        node.started -= 90_000
        for minute in range(1500):
            traffic(node, minute, trio.current_time() - 60 * (1500 - minute))
        client = build_app(node).test_client()
        found = {}
        for path in PATHS:
            response = await client.get(path)
            found[path] = response.status_code, dict(response.headers), await response.get_data()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_survey, "_ask", summary)
        return {name: trio.run(answers, size) for name, size in SIZES.items()}


PATHS = [
    *(f"/debug/web/{page}{query}" for page in ("", "cluster") for query in ("", "?find=", "?find=client-0017")),
    *FILES,
]


def traffic(node: Node, minute: int, now: float) -> None:
    """A minute of a day in which the evening was quiet."""
    busy = minute % 500 < 350
    requests, served = node.metrics.mirror_requests, node.metrics.served_bytes
    requests.labels("docker.io", "hit").inc(minute * minute % 17 if busy else 0)
    requests.labels("docker.io", "miss").inc(minute % 11 == 0)
    served.labels("peer").inc((minute * minute % 17) << 20 if busy else 0)
    served.labels("own").inc((minute * 7 % 13) << 22)
    node.history.note(now)


async def summary(client: object, peer: dict[str, Any], at: tuple[str, int]) -> NodeSummary:
    """A cluster in which some nodes do not answer, some are not ready, and some run an older version."""
    number = int(peer["id"][-8:])
    if number % 97 == 5:
        raise PeerError(f"{at[0]}:9090 did not answer within 2 s")
    names = [f"registry.example.com/team/app-{each:02}:v1" for each in range(40) if number % (each + 1) == 0]
    return NodeSummary(
        id=peer["id"],
        version="0.1.0" if number % 30 else "0.0.9",
        ready=number % 60 != 7,
        reason="containerd is away",
        warnings=("the ring lacks 2 of 102 healthy routers: a, b",) if number % 41 == 3 else (),
        leader=f"12D3KooW{3:044}",
        peer_tls="prefer",
        zone=f"rack-{number % 4}",
        image_count=len(names),
        images=tuple((name, "sha256:1") for name in names),
        day_hits=number % 900,
        day_misses=number % 7,
        day_bytes=number << 25,
        followers=number % 3,
    )


CLIPPED = """() => {
  const inside = (small, large) => small.left >= large.left - 1 && small.right <= large.right + 1
    && small.top >= large.top - 1 && small.bottom <= large.bottom + 1;
  const svg = document.querySelector("svg.ring").getBoundingClientRect();
  const texts = [...document.querySelectorAll("svg.ring .member text")];
  const clipped = texts.filter((text) => !inside(text.getBoundingClientRect(), svg)).map((text) => text.textContent);
  const boxes = texts.map((text) => text.getBoundingClientRect()).sort((one, other) => one.top - other.top);
  const over = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > one.height / 2;
  boxes.forEach((one, n) => boxes.slice(n + 1).forEach((other) => over(one, other) && clipped.push("overlap")));
  return clipped;
}"""


# a page scrolls in itself on a phone if a finger on a list moves the list, and not the page
SCROLLING = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const style = getComputedStyle(element);
  return /auto|scroll/.test(style.overflowX + style.overflowY)
    && (element.scrollHeight > element.clientHeight + 1 || element.scrollWidth > element.clientWidth + 1);
}).map((element) => element.id || element.className)"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "path"), [*((name, "/debug/web/") for name in SIZES), ("crowd-1000", "/debug/web/cluster")]
)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_it_is_readable_on_a_desktop_and_on_a_phone(
    chromium, served, name: str, path: str, width: int, scheme: str
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))

    def answer(route: Any) -> None:
        status, headers, body = served[name]["/" + route.request.url.split("/", 3)[3]]
        route.fulfill(status=status, headers=headers, body=body)

    page.route("**/*", answer)
    page.goto(f"http://node.test{path}")
    whole = path.endswith("cluster")
    assert page.title() == f"{f'Cluster of {SIZES[name][0] + 3}' if whole else 'nomad-client-0000'} · spegel-consul"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") < 5000
    if width < 640:
        assert page.evaluate(SCROLLING) == []
        for table in page.locator("section:has(input.all)").all():
            assert table.locator("label.all").is_visible() == (table.locator("tbody tr").count() > 5)
    assert "% of" in page.locator("#headline").inner_text()
    if not whole:
        assert page.locator(".spark").count() == 4
        assert page.evaluate(CLIPPED) == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}-{'cluster' if whole else 'node'}-{width}-{scheme}.png", full_page=True)
    if page.locator("#find").count():
        page.get_by_label("Find nodes").fill("client-0017")
        rows = f"#{'nodes' if whole else 'peers'} tbody tr:only-child"
        page.locator(rows, has_text="nomad-client-0017").wait_for()
    assert said == []
    context.close()
