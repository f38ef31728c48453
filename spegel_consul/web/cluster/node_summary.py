"""``NodeSummary``: what one node tells of itself in the overview of the cluster, as a small document.

:func:`of` makes the document of this node, which ``/api/summary`` answers with; :meth:`NodeSummary.parse` reads that of
another one. Another node is not trusted: a field of the wrong type is an error, and each text and list has a limit, so
that a thousand summaries take some MiB. A field that is missing has its default, because versions only add fields.

A new fact in the overview belongs here, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from spegel_consul import __version__
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.web.node_views import Document, Node

MOST_IMAGES = 100
MOST_WARNINGS = 5
MOST_TRANSFERS = 10
_LONGEST_NAME = 255
_LONGEST_TEXT = 300


class BadSummary(Exception):
    """The document is no summary; the message is one line."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A body that a node receives from a peer. ``image`` is its reference, ``peer`` the name of the sender."""

    image: str = ""
    kind: str = ""
    peer: str = ""
    bytes: int = 0
    size: int = 0
    rate: int = 0


@dataclass(frozen=True, slots=True)
class Follow:
    """A download of a node, as in :meth:`Node.following`. ``source`` is the name of the node that it follows, or ""."""

    image: str = ""
    role: str = ""
    source: str = ""
    have: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """``leader``: the peer id of the leader as the node knows it; ``members``: other members of the ring that it
    believes alive. Numbers of ``day`` are those of the last 24 hours, or since the start."""

    id: str = ""
    name: str = ""
    version: str = ""
    store: str = ""
    zone: str = ""
    ready: bool = False
    reason: str = ""
    warnings: tuple[str, ...] = ()
    uptime: int = 0
    leader: str = ""
    peer_tls: str = ""
    members: int = 0
    image_count: int = 0
    image_bytes: int = 0
    images: tuple[tuple[str, str], ...] = ()
    """Names and digests, at most :data:`MOST_IMAGES` of them."""
    day_hits: int = 0
    day_misses: int = 0
    day_bytes: int = 0
    """Bytes that came from peers."""
    follows: tuple[Follow, ...] = ()
    followers: int = 0
    transfer_count: int = 0
    transfers: tuple[Transfer, ...] = ()

    @classmethod
    def parse(cls, document: object) -> NodeSummary:
        """The summary in a JSON document. Raises BadSummary."""
        if not isinstance(document, dict) or not isinstance(document.get("id"), str):
            raise BadSummary("the answer is no summary of a node")
        if isinstance(document.get("uptime"), int | float):
            # older versions measure it by the time of day, so it is negative after that was set back
            document = {**document, "uptime": max(0, document["uptime"])}
        found = _scalars(cls, document)
        found["warnings"] = tuple(_text(each) for each in _list(document, "warnings", MOST_WARNINGS))
        found["images"] = tuple(map(_image, _list(document, "images", MOST_IMAGES)))
        found["follows"] = tuple(
            Follow(**_scalars(Follow, each)) for each in _list(document, "follows", MOST_TRANSFERS)
        )
        transfers = _list(document, "transfers", MOST_TRANSFERS)
        found["transfers"] = tuple(Transfer(**_scalars(Transfer, each)) for each in transfers)
        return cls(**found)


def of(node: Node) -> Document:
    """The summary of this node, as JSON."""
    members = node.cluster_members()
    status, images = node.status(members), node.images()
    leader, day = status["leader"], status["mirror"]["day"]
    transfers = status["transfers"]
    return {
        "id": node.ring.me.id or "",
        "name": node.name,
        "version": __version__,
        "store": node.store_kind,
        "zone": (status["node"].get("place") or "").rstrip("/"),
        "ready": status["ready"],
        "reason": _text("; ".join(status["reasons"])),
        "warnings": [_text(warning) for warning in status["warnings"][:MOST_WARNINGS]],
        "uptime": int(node.uptime),
        "leader": (leader["peer_id"] or "") if leader is not None else "",
        "peer_tls": status["peer_tls"]["mode"] if status["peer_tls"] is not None else "",
        "members": status["ring"]["members"],
        "image_count": len(images),
        "image_bytes": status["content"]["bytes"],
        "images": [[image["name"], image["digest"]] for image in images[:MOST_IMAGES]],
        "day_hits": day["hits"],
        "day_misses": day["misses"],
        "day_bytes": day["bytes_from_peers"],
        "follows": [
            {
                "image": _text(each["image"] or each["group"]),
                "role": each["role"] or "",
                "source": each["source_node"] or each["source"] or "",
                "have": each["have"],
                "size": each["size"] or 0,
            }
            for each in status["following"][:MOST_TRANSFERS]
        ],
        "followers": len({each["peer"] for each in status["followers"]}),
        "transfer_count": len(transfers),
        "transfers": [
            {
                "image": _text(each["reference"]),
                "kind": each["kind"],
                "peer": each["peer_node"] or each["peer"] or "",
                "bytes": each["bytes"],
                "size": each["size"],
                "rate": each["bytes_per_second"] or 0,
            }
            for each in transfers[:MOST_TRANSFERS]
        ],
    }


def _scalars(of_class: type, document: object) -> dict[str, Any]:
    """The texts, numbers and booleans of ``document`` that are fields of the class. Raises BadSummary."""
    if not isinstance(document, Mapping):
        raise BadSummary("a part of the summary is no object")
    found: dict[str, Any] = {}
    for field in fields(of_class):
        default: Any = field.default
        value: Any = document.get(field.name, default)
        kind = type(default)
        if kind is tuple:
            continue
        # a boolean is a number to Python, and a number with a fraction is one to JSON
        if kind is int and isinstance(value, float) and abs(value) < 1 << 62:
            value = int(value)
        if type(value) is not kind:
            raise BadSummary(f"{field.name} of the summary is no {_KINDS[kind]}")
        if kind is int and not 0 <= value < 1 << 62:
            raise BadSummary(f"{field.name} of the summary is out of range")
        found[field.name] = _clean(value[:_LONGEST_NAME]) if kind is str else value
    return found


_KINDS: dict[type, str] = {str: "text", int: "number", bool: "boolean"}


def _list(document: Mapping[str, Any], name: str, most: int) -> list[Any]:
    value = document.get(name, [])
    if not isinstance(value, list):
        raise BadSummary(f"{name} of the summary is no list")
    return value[:most]


def _image(value: object) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, str) for each in value):
        raise BadSummary("an image of the summary is no name and digest")
    return _clean(value[0][:_LONGEST_NAME]), _clean(value[1][:_LONGEST_NAME])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadSummary("a text of the summary is none")
    value = _clean(value)
    return value if len(value) <= _LONGEST_TEXT else value[: _LONGEST_TEXT - 1] + "…"


def _clean(text: str) -> str:
    """``text`` without halves of surrogate pairs, which JSON may have and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()
