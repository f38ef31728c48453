"""Expected sizes of blobs, from the manifests that have passed through this node.

A peer could claim a wrong size of a blob, so that its wrong bytes are streamed instead of held. A manifest names the
sizes of its blobs, and is requested before them. But anybody can write a manifest that names any blob with a wrong
size, because a manifest's digest proves its bytes and not its claims. So an expected size is a hint: a disputed size
makes this node hold and verify the body, and never makes it refuse an answer.

A new source of expected sizes belongs here; the use of them is in :mod:`spegel_consul.registry.mirror.fetch`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from spegel_consul.bounded_dict import BoundedDict

_MOST = 1024
_MOST_OF_ONE = 512
_LARGEST = 256 << 10  # bytes of a manifest; no real image has a larger one, and parsing occupies the event loop
_MOST_BYTES = 1 << 53  # beyond it, JSON's numbers are not exact in all languages (RFC 8259, 6)


def named_blobs(manifest: bytes) -> Iterator[tuple[str, int]]:
    """Yield the digest and the size of each blob that ``manifest``, a JSON object, names: its config and its layers."""
    if len(manifest) > _LARGEST:
        return
    named = json.loads(manifest)
    layers = named.get("layers")
    for blob in [named.get("config"), *(layers if isinstance(layers, list) else [])][:_MOST_OF_ONE]:
        if isinstance(blob, dict):
            digest, size = blob.get("digest"), blob.get("size")
            # type() and not isinstance(), because a bool is an int but no size
            if isinstance(digest, str) and type(size) is int and len(digest) <= 200 and 0 <= size <= _MOST_BYTES:
                yield digest, size


class Sizes:
    """Expected sizes in bytes by digest; the latest ones are remembered."""

    def __init__(self) -> None:
        self._sizes: BoundedDict[str, int | None] = BoundedDict(_MOST)  # None: manifests disagree

    def learn(self, manifest: bytes) -> None:
        """Remember the sizes of the blobs that ``manifest``, a JSON object, names."""
        for digest, size in named_blobs(manifest):
            self._sizes[digest] = size if self._sizes.get(digest, size) == size else None

    def get(self, digest: str) -> int | None:
        """Return the size that manifests agree upon; None if no manifest names the blob, or they disagree."""
        return self._sizes.get(digest)

    def disputes(self, digest: str, size: int) -> bool:
        """Whether a manifest names another size than ``size``."""
        return self._sizes.get(digest, size) != size
