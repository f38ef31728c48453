"""Media types of manifests, and how to tell the type of a manifest that does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCTET_STREAM = "application/octet-stream"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

_SAFE = re.compile(r"[!-~]+/[ -~]+\Z")


def header_safe(media_type: str) -> str:
    """``media_type``, or application/octet-stream if it could not stand in a header field.

    It was written by whoever made the image, and it is sent as Content-Type. A type of several parts is replaced too,
    because a client would look for parts in the content, and find what the image or a peer wants it to find.
    """
    safe = len(media_type) <= 255 and _SAFE.match(media_type) and not media_type.lower().startswith("multipart/")
    return media_type if safe else OCTET_STREAM


MAX_MANIFEST_SIZE = 4 << 20
"""Bytes; the distribution spec asks registries to take manifests up to this size."""


def manifest_media_type(body: bytes, said: str | None = None) -> str | None:
    """The media type of a manifest or index, or None if ``body`` is neither.

    ``mediaType`` wins (image-spec manifest.md asks for it, and warns that it is often absent). Without it
    ``manifests`` means an index, and ``config`` with ``layers`` a manifest. Which of the two kinds it is, only the
    shape says; ``said``, the type that a descriptor or a sender gives, says whether it is Docker's or OCI's.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    declared = document.get("mediaType")
    if isinstance(declared, str) and declared in INDEXES | MANIFESTS:
        return declared
    if isinstance(document.get("manifests"), list):
        fitting, usual = INDEXES, OCI_INDEX
    elif isinstance(document.get("config"), dict) and entries(document, "layers") is not None:
        fitting, usual = MANIFESTS, OCI_MANIFEST
    elif entries(document, "manifests") is not None:
        fitting, usual = INDEXES, OCI_INDEX
    else:
        return None
    return said if said in fitting and not declared else usual


def entries(document: Mapping[str, object], name: str) -> list[object] | None:
    """The list of this name, or None if there is none. Go writes ``null`` for a list that has no entries."""
    found = document.get(name, False)
    return [] if found is None else found if isinstance(found, list) else None
