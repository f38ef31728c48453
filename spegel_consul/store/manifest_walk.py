"""From the bytes of a manifest or index to the descriptors of its children. No I/O.

A manifest names its parts. An index has manifests, one for each platform, of which a node usually has one. A manifest
has a config and layers, all of which a node needs in order to serve the image. So "whole" has a meaning of its own for
each, and parse() tells which children are needed and which are extras:

  index      one of `needed` is enough; extras are attestations, which describe a platform but are none
  manifest   all of `needed` must be present; extras are layers that no registry serves (foreign and
             non-distributable ones, which runtimes fetch from the URLs in the descriptor)

Extras are served like other content if the node has them. A new rule about the structure of manifests belongs here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.oci.media import (
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST_SIZE,
    OCI_MANIFEST,
    OCTET_STREAM,
    entries,
    header_safe,
    manifest_media_type,
)


class ManifestInvalid(ValueError):
    """The bytes are not a manifest or index; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed manifest or index. ``declared``: the media type is in the document, and not a guess from its shape."""

    media_type: str
    declared: bool
    needed: tuple[Descriptor, ...]
    extras: tuple[Descriptor, ...]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    def with_children(self, changed: Callable[[Descriptor], Descriptor]) -> Document:
        """Return the document with each child changed."""
        return Document(
            self.media_type, self.declared, *(tuple(map(changed, each)) for each in (self.needed, self.extras))
        )


def parse(body: bytes) -> Document:
    """Parse an OCI or Docker manifest, index or manifest list.

    Children of an index without a valid digest or size are left out, because its other children may still be whole.
    Raises ManifestInvalid if ``body`` is longer than 4 MiB, is no manifest, or is a manifest that can't be whole
    because one of its children is malformed.
    """
    if len(body) > MAX_MANIFEST_SIZE:
        raise ManifestInvalid(f"the manifest has {len(body)} bytes, more than {MAX_MANIFEST_SIZE}")
    media_type = manifest_media_type(body)
    if media_type is None:
        raise ManifestInvalid("neither a manifest nor an index in JSON")
    document = json.loads(body)
    declared = document.get("mediaType") == media_type
    if media_type in INDEXES:
        children = [(entry, _child(entry, OCI_MANIFEST)) for entry in entries(document, "manifests") or ()]
        known = [(entry, child) for entry, child in children if child is not None]
        needed = tuple(child for entry, child in known if not _is_attestation(entry))
        extras = tuple(child for entry, child in known if _is_attestation(entry))
        return Document(media_type, declared, needed, extras)
    layers = entries(document, "layers")
    descriptors = [
        _child(part, OCTET_STREAM) for part in (document.get("config"), *([None] if layers is None else layers))
    ]
    if None in descriptors:
        raise ManifestInvalid("the config or a layer is missing or has no valid digest and size")
    present = [descriptor for descriptor in descriptors if descriptor is not None]
    needed = tuple(descriptor for descriptor in present if not _is_foreign(descriptor.media_type))
    extras = tuple(descriptor for descriptor in present if _is_foreign(descriptor.media_type))
    return Document(media_type, declared, needed, extras)


def is_manifest_type(media_type: str) -> bool:
    """Whether content of this media type has children."""
    return media_type in MANIFESTS or media_type in INDEXES


def _child(entry: object, default_type: str) -> Descriptor | None:
    if not isinstance(entry, dict):
        return None
    digest, size, media_type = entry.get("digest"), entry.get("size"), entry.get("mediaType")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return None
    try:
        checked = Digest(digest)
    except DigestInvalid:
        return None
    if not isinstance(media_type, str) or not media_type:
        media_type = default_type
    return Descriptor(checked, size, sys.intern(header_safe(media_type)))


def _is_foreign(media_type: str) -> bool:
    return ".nondistributable." in media_type or ".foreign." in media_type


def _is_attestation(entry: object) -> bool:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return isinstance(annotations, dict) and "vnd.docker.reference.type" in annotations
