"""``/debug/web/``: the status page of this node.

The server renders the complete page. Without JavaScript a link reloads it. With JavaScript the page fetches itself
every two seconds and replaces the parts that have changed, so there is only one renderer.

Names come from other nodes and from clients. So the templates escape them, and the content security policy of each
answer permits no other host and no inline script or style.

A new part of the page belongs here and in the templates; its facts belong to :mod:`spegel_consul.web.node_views`. The
page of the whole cluster is :mod:`spegel_consul.web.cluster.cluster_page`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from jinja2 import Environment, PackageLoader, StrictUndefined
from quart import Blueprint, Response, request

from spegel_consul.web import drawing, forest, formatting
from spegel_consul.web.access import request_origin
from spegel_consul.web.node_views import Document, Node
from spegel_consul.web.queries.image_locations import ImageLocations
from spegel_consul.web.queries.questions import BadQuestion, Busy, Measurer

ROOT = "/debug/web/"
MOST_ROWS = 25
"""Peers and images that are listed; the search finds all others by name."""

_DAY, _HOUR = 86400, 60
_STATIC = Path(__file__).with_name("static")
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, forms would be sent with "Origin: null"
    "cache-control": "no-store",
}


def blueprint(node: Node, measurer: Measurer, links: Callable[[], Awaitable[Mapping[str, str]]]) -> Blueprint:
    """The routes below ``/debug/web`` but that of the cluster.

    ``links`` returns the URLs of the other nodes' pages by their peer ids.
    """
    pages = Blueprint("pages", __name__, url_prefix=ROOT.rstrip("/"))
    templates = environment()
    locations = ImageLocations(node)
    threads = trio.CapacityLimiter(1)
    files = {path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in _STATIC.iterdir() if path.suffix in _TYPES}

    async def page(status: int = 200, find: str = "", **measured: Any) -> Response:
        cluster_members = node.cluster_members()
        images, peers, requests = node.images(), node.peers(cluster_members), node.requests(cluster_members)
        received = _received(requests)
        matching = found(find, images, ("name", "digest"))
        shown = matching[:MOST_ROWS]
        listed = found(find, peers, ("node", "id", "registry", "state", "version", "place"))
        status_document = node.status(cluster_members)
        trees = forest.trees(status_document["following"], status_document["followers"])
        facts = {
            "status": status_document,
            "find": find,
            "many": max(len(peers), len(images)) > MOST_ROWS,
            "peers": _by_interest(listed, received)[:MOST_ROWS],
            "links": await links(),
            "peers_found": len(listed),
            "peers_known": len(peers),
            "images": shown,
            "images_found": len(matching),
            "images_known": len(images),
            "elsewhere": await locations.of([image["name"] for image in shown], cluster_members.names),
            "requests": found(find, requests, ("reference", "peer_node", "peer", "outcome")),
            "transfers": status_document["transfers"],
            "trees": trees[:MOST_ROWS],
            "trees_known": len(trees),
            "ring": drawing.ring(peers, received),
            "widest": _widest(requests),
            "phases": drawing.PHASES,
            "radius": drawing.RADIUS,
            "headline": _headline(node),
            "sparks": _sparks(node),
            "asked": "",
            "measured": None,
            "problem": None,
            **measured,
        }
        # in a thread, because a hundred requests take tens of milliseconds, which would delay all transfers
        text = await trio.to_thread.run_sync(templates.get_template("page.html").render, facts, limiter=threads)
        return Response(text, status=status, content_type="text/html; charset=utf-8", headers=HEADERS)

    @pages.get("/")
    async def index() -> Response:
        return await page(find=request.args.get("find", "").strip()[:100])

    @pages.get("/measure")
    async def ask() -> Response:
        """The filled-in form, without a measurement, because a link must not start one."""
        return await page(asked=request.args.get("image", "")[:200])

    @pages.post("/measure")
    async def measure() -> Response:
        asked = (await request.form).get("image", "")
        shown = asked[:200]
        if request_origin.from_another_site():
            return await page(403, asked=shown, problem="a page of another site asked for this measurement")
        try:
            measured = (await measurer.run(measurer.prepare(asked))).to_json()
        except BadQuestion as exc:
            return await page(400, asked=shown, problem=str(exc))
        except Busy as exc:
            return await page(429, asked=shown, problem=str(exc))
        return await page(asked=shown, measured=measured, rows=drawing.pieces(measured))

    @pages.get("/<name>")
    async def static(name: str) -> Response:
        content, content_type = files.get(name, (b"there is no such page\n", "text/plain; charset=utf-8"))
        headers = {**HEADERS, "cache-control": "max-age=300"}
        return Response(content, status=200 if name in files else 404, content_type=content_type, headers=headers)

    return pages


def environment() -> Environment:
    """The templates of all pages, with escaping on."""
    made = Environment(
        loader=PackageLoader("spegel_consul.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": formatting.size,
        "part": formatting.part,
        "speed": formatting.speed,
        "ms": formatting.milliseconds,
        "span": formatting.seconds,
        "ago": formatting.ago,
        "share": formatting.share,
        "short": formatting.short,
        "image": formatting.image,
        "few": formatting.few,
        "elided": formatting.elided,
        "number": formatting.number,
        "one": lambda kind: {"blobs": "blob", "manifests": "manifest"}.get(kind, kind),
        "phase": lambda name: {"wait": "first byte", "stream": "bytes"}.get(name, name),
        "slug": lambda text: re.sub(r"[^a-z0-9]+", "-", str(text).lower())[:60],
    }
    made.globals |= {"waterfall": drawing.waterfall, "spark_height": drawing.SPARK_HEIGHT}
    return made


def _headline(node: Node) -> dict[str, Any]:
    """The traffic of the last day, and the text that says since when."""
    up, day = node.uptime, node.history.day()
    span = "in the last 24 h" if up >= _DAY else f"in {formatting.seconds(max(up, 1.0))} since the start"
    return {"saved": day.from_peers, "requests": day.requests, "ratio": day.hit_ratio, "span": span}


def _sparks(node: Node) -> dict[str, dict[str, Any]]:
    """The sparklines of the tiles, by their figures."""
    lines = node.history.lines()
    part = formatting.seconds(60 * lines.minutes / len(lines.hits)) if lines.minutes > _HOUR else "1 min"
    span = formatting.seconds(60 * lines.minutes) if lines.minutes > _HOUR else "60 min"
    series = {"hits": lines.hits, "misses": lines.misses, "from_peers": lines.from_peers, "own": lines.own}
    return {
        name: {
            "path": drawing.spark(values),
            "parts": len(values),
            "most": max(values),
            "part": part,
            "span": span,
        }
        for name, values in series.items()
    }


def found(text: str, rows: list[Document], fields: tuple[str, ...]) -> list[Document]:
    """The rows with ``text`` in one of their fields, or all."""
    text = text.lower()
    return [row for row in rows if any(text in str(row[field]).lower() for field in fields)] if text else rows


def _by_interest(peers: list[Document], received: Counter[str]) -> list[Document]:
    """In order of names if all are shown; else this node, the leader, absent peers and the largest senders first."""
    if len(peers) <= MOST_ROWS:
        return peers
    return sorted(
        peers,
        key=lambda peer: (
            peer["state"] != "self",
            not peer["leader"],
            peer["state"] == "alive",
            -received[str(peer["registry"])],
        ),
    )


def _received(requests: list[Document]) -> Counter[str]:
    """Bytes by the registry that sent them."""
    received: Counter[str] = Counter()
    for each in requests:
        if each["peer"]:
            received[each["peer"]] += each["bytes"]
    return received


def _widest(requests: list[Document]) -> float:
    """The time in ms that fills a row of the waterfall: the 95th percentile, so that outliers do not shrink others."""
    times = sorted(float(each["elapsed_ms"]) for each in requests)
    if not times:
        return 1.0
    return max(times[int(len(times) * 0.95)] if len(times) > 20 else times[-1], 1.0)
