"""The images of all nodes that fewer than so many nodes have: each node is asked for its own.

The lookups of a node are for its own images only, so each image is counted by each node that has it. A node that can't
be reached is named with the reason, because its images are not in the list. Answers of peers are bounded in size and
time, and their texts are checked, because a peer may send anything.

Fresh counts of hundreds of nodes take many minutes, and all their lookups burden the ring. So if not all nodes can be
asked at the same time, each answers from its last count.

A rule about the answers of several nodes belongs here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import trio

from spegel_consul.error_words import in_words
from spegel_consul.http import bounded_client
from spegel_consul.http.answer_bounds import AnswerRefused
from spegel_consul.oci.media import entries
from spegel_consul.peers import host_port
from spegel_consul.web.copies.own_copies import OwnCopies
from spegel_consul.web.node_views import Document, Node
from spegel_consul.web.preheat import preheat_targets
from spegel_consul.web.preheat.preheat_targets import Target

PATH = "/api/copies"
MOST_PEERS = 64
"""Peers that are asked at the same time."""

WITHIN = 30.0
"""Seconds that a peer has for its count."""

_LIMIT = 2 << 20  # bytes of one answer: two thousand images
_MOST_TEXT = 512
_MOST_HOLDERS = 20


async def fewer_than(node: Node, own: OwnCopies, wanted: int) -> Document:
    """Return the images of all nodes that fewer than ``wanted`` nodes have, and the nodes that did not answer."""
    images: dict[tuple[str, str], Document] = {}
    failed: list[Document] = []
    places = trio.CapacityLimiter(MOST_PEERS)
    targets = await preheat_targets.find(node, None)
    last = len(targets) > MOST_PEERS

    async def ask(client: httpx.AsyncClient, target: Target) -> None:
        if target.metrics is None:
            found, problem = list(_images(await own.fewer_than(wanted, last=last))), None
        else:
            async with places:
                found, problem = await _peer(client, target.metrics, wanted, last)
        images.update(((image["digest"], image["name"]), image) for image in found)
        if problem is not None:
            failed.append({"node": target.name, "id": target.id, "problem": problem})

    transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False)
    async with bounded_client.client(transport=transport) as client, trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(ask, client, target)
    return {
        "node": None,
        "images": sorted(images.values(), key=lambda image: (image["name"], image["digest"])),
        "asked": len(targets),
        "last": last,
        "failed": sorted(failed, key=lambda each: (each["node"], each["id"])),
    }


async def _peer(
    client: httpx.AsyncClient, metrics: tuple[str, int], wanted: int, last: bool
) -> tuple[list[Document], str | None]:
    """Return the images of a peer, or none and the reason."""
    where = host_port(*metrics)
    try:
        answer = await bounded_client.receive(
            client,
            "GET",
            f"http://{where}{PATH}",
            params={"fewer": str(wanted)} | ({"last": "1"} if last else {}),
            limit=_LIMIT,
            within=WITHIN,
            connect=5.0,
        )
        if answer.status == 404:
            return [], "its sidecar is an older version, which counts no copies"
        if answer.status != 200:
            return [], f"{where} answered with status {answer.status}"
        return list(_images(json.loads(answer.body))), None
    except trio.TooSlowError:
        return [], f"{where} did not answer within {WITHIN:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, AnswerRefused) as exc:
        return [], f"{where} can't be asked: {in_words(exc)}"
    except (ValueError, RecursionError):
        return [], f"{where} did not answer with a count of copies"


def _images(document: Any) -> Iterator[Document]:
    """Yield the well-formed images of a node's answer. Raises ValueError if it has none."""
    images = entries(document, "images") if isinstance(document, dict) else None
    if images is None:
        raise ValueError("no images")
    for image in images:
        if not isinstance(image, dict):
            continue
        name, digest, size, nodes = (image.get(each) for each in ("name", "digest", "size", "nodes"))
        if _is_text(name) and _is_text(digest) and type(size) is int and isinstance(nodes, list):
            holders = [each for each in nodes[:_MOST_HOLDERS] if _is_holder(each)]
            if holders:
                yield {"name": name, "digest": digest, "size": size, "nodes": holders}


def _is_holder(found: object) -> bool:
    return isinstance(found, dict) and _is_text(found.get("id")) and _is_text(found.get("node") or "")


def _is_text(found: object) -> bool:
    return isinstance(found, str) and len(found) <= _MOST_TEXT
