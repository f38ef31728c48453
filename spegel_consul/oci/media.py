"""Media types of manifests, and how to tell the type of a manifest that does not say."""

from __future__ import annotations

import json
import re

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


def manifest_media_type(body: bytes) -> str | None:
    """The media type of a manifest or index, or None if ``body`` is neither.

    ``mediaType`` wins (image-spec manifest.md asks for it, and warns that it is often absent);
    without it, ``manifests`` means an index and ``config`` with ``layers`` a manifest.
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
        return OCI_INDEX
    if isinstance(document.get("config"), dict) and isinstance(document.get("layers"), list):
        return OCI_MANIFEST
    return None
