"""The status page in a real browser, on a real ring of three."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lab.browser import Watched, browser
from lab.process import until

pytestmark = pytest.mark.real

SHOTS = Path(os.environ.get("SPEGEL_SCREENSHOTS") or Path.home() / ".cache/spegel-consul-screenshots")
"""Where screenshots are kept for people to look at."""

DIGESTS = re.compile(r"sha256:[0-9a-f]{12}")


@pytest.fixture(scope="module")
def busy(ring) -> Any:
    """The ring after some traffic at n1."""
    for digest in (ring.image.amd64.config, *ring.image.amd64.layers):
        assert ring.pull(digest).status == 200
    assert ring.pull("sha256:" + "0" * 64).status == 404
    return ring


@pytest.fixture(scope="module")
def chromium(ring) -> Iterator[Any]:
    with browser(ring[1].netns, ring.lab.dir) as opened:
        yield opened


@pytest.fixture
def open_page(chromium, ring) -> Iterator[Callable[..., Watched]]:
    """Opens the page of n1 with the given settings of the browser; nothing may go wrong on any of them."""
    opened: list[Watched] = []
    contexts = []

    def open_it(path: str = "/debug/web/", **settings: Any) -> Watched:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        watched = Watched(contexts[-1].new_page(), f"{ring[1].ip}:9090")
        watched.page.set_default_timeout(20_000)
        opened.append(watched)
        watched.page.goto(f"http://{ring[1].ip}:9090{path}")
        return watched

    yield open_it
    for context in contexts:
        context.close()
    for watched in opened:
        assert watched.errors == []
        assert watched.elsewhere == []


def measure(watched: Watched) -> None:
    """Measure what the form has in it."""
    watched.page.get_by_role("button", name="Measure").click()
    watched.page.locator("#measured table").wait_for()


def shoot(watched: Watched, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    watched.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_it_shows_the_ring_the_peers_and_the_requests(busy, open_page) -> None:
    for scheme in ("light", "dark"):
        watched = open_page(color_scheme=scheme)
        page = watched.page
        assert page.title() == "n1 · spegel-consul"
        assert page.locator("h1").inner_text() == "n1"
        assert page.locator("#peers tbody tr").count() == 3
        assert page.locator("#ring .member").count() == 3
        assert page.locator("#ring .member.leader").count() == 1
        assert page.locator("#ring .flow").count() == 1, "a line from n0, which served"
        rows = page.locator("#requests tbody tr")
        assert rows.count() >= 6
        assert "n0" in rows.nth(1).inner_text()
        assert page.locator("#requests .outcome.hit").count() >= 5
        assert page.locator("#requests .outcome.miss").count() >= 1
        assert page.locator("#requests rect.stream").count() >= 4
        assert "3 members" in page.locator("#tiles .tile").first.inner_text()
        shoot(watched, scheme)


def test_the_whole_cluster_is_in_one_page_and_its_nodes_are_links(busy, open_page) -> None:
    watched = open_page("/debug/web/cluster")
    page = watched.page
    rows = page.locator("#nodes tbody tr")
    assert rows.count() == 3
    assert all("ready" in text or "this node" in text for text in rows.all_inner_texts())
    assert "3 of 3 nodes answered" in page.locator("header").inner_text()
    assert page.locator("#images tbody tr").count() == 1
    assert "1 of 3" in page.locator("#images tbody tr").first.inner_text()
    page.get_by_role("link", name="n0").first.click()
    page.wait_for_url(f"http://{busy[0].ip}:9090/debug/web/")
    assert page.locator("h1").inner_text() == "n0"
    assert all(url.startswith(f"http://{busy[0].ip}:9090/") for url in watched.elsewhere)
    watched.elsewhere.clear()


def test_images_say_where_else_they_are(busy, chromium) -> None:
    page = chromium.new_page()
    page.goto(f"http://{busy[0].ip}:9090/debug/web/")
    row = page.locator("#images tbody tr").first.inner_text()
    assert "app:v1" in row
    assert "nowhere else" in row
    page.close()


def test_measuring_an_image_draws_it(busy, open_page) -> None:
    watched = open_page()
    page = watched.page
    page.get_by_label("Image name").fill(busy.image.name)
    page.get_by_role("button", name="Measure").click()
    page.locator("#measured table").wait_for()
    measured = page.locator("#measured")
    assert measured.locator("tbody tr").count() == len(busy.image.digests)
    assert "whole" in measured.inner_text()
    assert "Found at 1 peer" in measured.inner_text()
    assert len(set(DIGESTS.findall(measured.inner_text()))) == len(busy.image.digests)
    widths = [float(rect.get_attribute("width") or 0) for rect in measured.locator("rect.stream").all()]
    assert len(widths) == len(busy.image.digests)
    assert max(widths) > 5
    shoot(watched, "measured")


def test_it_is_the_same_without_javascript(busy, open_page) -> None:
    watched = open_page(java_script_enabled=False)
    page = watched.page
    assert page.locator("#peers tbody tr").count() == 3
    page.get_by_label("Image name").fill(busy.image.name)
    page.get_by_label("Image name").press("Enter")
    page.locator("#measured table").wait_for()
    assert page.locator("#measured tbody tr").count() == len(busy.image.digests)


def test_on_a_phone_nothing_is_cut_off(busy, open_page) -> None:
    watched = open_page(
        f"/debug/web/measure?image={busy.image.name}", viewport={"width": 360, "height": 780}, device_scale_factor=2
    )
    measure(watched)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.page.locator("#measured tbody tr").count() == len(busy.image.digests)
    shoot(watched, "phone")


def test_a_transfer_is_shown_while_it_lasts(busy, open_page) -> None:
    watched = open_page()
    layer = max(busy.image.amd64.layers, key=lambda digest: busy.image.blob(digest).stat().st_size)
    path = f"/v2/{busy.image.repository}/blobs/{layer}?ns={busy.image.registry}"
    with busy[1].netns.connect(busy[1].ip, 5000) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: slow-one\r\n\r\n".encode())
        bar = watched.page.locator("#transfers progress")
        bar.wait_for()
        transfer = busy.json("/api/transfers", 1)[0]
        # all of it may be here, and held back until it was verified and the client reads
        assert 0 < transfer["bytes"] <= transfer["size"] == busy.image.blob(layer).stat().st_size
        assert (transfer["peer_node"], transfer["request_id"]) == ("n0", "slow-one")
        shown = watched.page.locator("#transfers li").inner_text()
        assert "from n0" in shown
        shoot(watched, "transfer")
    until(
        lambda: busy.json("/api/requests", 1)[0]["outcome"] == "gone", timeout=20, what="the client's departure is seen"
    )
    bar.wait_for(state="detached")


HOSTILE = [
    '"><script>document.title="owned"</script>',
    "' onmouseover='document.title=1' x='",
    "{{ status }}{% raw %}",
    "<img src=x onerror=document.title=1>" * 5,
    "a" * 10_000,
    "\u202edocker.io/x\x00",
]


def test_hostile_names_are_shown_and_do_nothing(busy, open_page) -> None:
    watched = open_page()
    page = watched.page
    for name in HOSTILE:
        form = urllib.parse.urlencode({"image": name}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        response = busy[1].netns.request(
            "POST", busy[1].ip, 9090, "/debug/web/measure", headers=headers, body=form, timeout=30
        )
        assert response.status == 400
        assert b"<script>document" not in response.body
        assert b"<img" not in response.body.replace(b'<img src="/debug/web/icon.svg"', b"")
        page.get_by_label("Image name").evaluate("(input, name) => { input.value = name }", name)
        with page.expect_response(lambda answer: "/debug/web/measure" in answer.url) as answered:
            page.get_by_role("button", name="Measure").click()
        assert answered.value.status == 400
        page.locator("#measured .notice.bad").wait_for()
        assert page.title() == "n1 · spegel-consul"
    # a form that is refused is an answer, and Chromium's console calls every 400 an error
    watched.errors[:] = [error for error in watched.errors if "status of 400" not in error]


def test_it_keeps_itself_fresh(busy, open_page) -> None:
    watched = open_page()
    before = watched.page.locator("#requests tbody tr").count()
    busy.pull("sha256:" + "1" * 64)
    busy.pull("sha256:" + "2" * 64)
    until(
        lambda: watched.page.locator("#requests tbody tr").count() == min(100, before + 2),
        timeout=15,
        what="new requests show up without a reload",
    )
    assert "Live" in watched.page.locator("#live-state").inner_text()


def test_a_keyboard_gets_everywhere_and_everything_has_a_name(busy, open_page) -> None:
    page = open_page().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"image", "Measure", "Reload", "status", "metrics"} <= reached
    unnamed = page.evaluate(
        """[...document.querySelectorAll('svg[role=img], progress, input, button, section, table')].filter(element =>
             !(element.getAttribute('aria-label') || element.labels?.length || element.textContent.trim())).length"""
    )
    assert unnamed == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(heading => +heading.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


CONTRASTS = """() => {
  const channel = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
  const parse = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length === 4 && found[3] === 0 ? null : found;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const found = parse(getComputedStyle(element).backgroundColor);
      if (found) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!says || element.closest("svg, datalist, title") || !element.getClientRects().length) continue;
    const both = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) poor.push(`${element.className} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(busy, open_page, scheme: str) -> None:
    watched = open_page(f"/debug/web/measure?image={busy.image.name}", color_scheme=scheme)
    measure(watched)
    page = watched.page
    assert page.evaluate(CONTRASTS) == []


def test_answers_let_nothing_else_in(busy) -> None:
    for path in ("/debug/web/", "/debug/web/style.css", "/debug/web/page.js", "/debug/web/none"):
        headers = busy.get(path, 1).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert busy.get("/debug/web/../app.py", 1).status == 404
    assert busy.get("/debug/web/%2e%2e%2fapp.py", 1).status == 404
    page = busy.get("/debug/web/", 1).body.decode()
    links = {f'<a href="http://{node.ip}:9090/debug/web/"' for node in busy.lab}
    assert set(re.findall(r"<[^>]*(?:src|href|action)=\"(?:https?:)?//[^>\"]*\"", page)) <= links
    status = json.loads(busy.get("/api/status", 1).body)
    assert "token" not in json.dumps(status).lower()
