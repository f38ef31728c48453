# A peer could lie about a blob's size, to have its wrong bytes streamed instead of held.  A manifest says how large its
# blobs are, and is asked for first.  But anybody can write a manifest that names anybody's blob, and its digest proves
# its bytes, not its truth.  So a size is a hint: it makes this node hold and verify, and never refuse an answer.

"""How large blobs are, as manifests say that came by."""

from __future__ import annotations

import json

from spegel_consul.bounded_dict import BoundedDict

_MOST = 2048
_MOST_OF_ONE = 512
_LARGEST = 256 << 10  # no real one of an image is larger, and it is parsed on the event loop
_MOST_BYTES = 1 << 53  # beyond it, JSON's numbers are not exact in all languages (RFC 8259, 6)


class Sizes:
    """Sizes in bytes by digest; the latest are remembered."""

    def __init__(self) -> None:
        self._sizes: BoundedDict[str, int | None] = BoundedDict(_MOST)  # None: manifests disagree

    def learn(self, manifest: bytes) -> None:
        """Of the blobs that ``manifest`` names, which is a JSON object."""
        if len(manifest) > _LARGEST:
            return
        named = json.loads(manifest)
        layers = named.get("layers")
        for blob in [named.get("config"), *(layers if isinstance(layers, list) else [])][:_MOST_OF_ONE]:
            if isinstance(blob, dict):
                digest, size = blob.get("digest"), blob.get("size")
                # a bool is an int too, but no size
                if isinstance(digest, str) and type(size) is int and len(digest) <= 200 and 0 <= size <= _MOST_BYTES:
                    self._sizes[digest] = size if self._sizes.get(digest, size) == size else None

    def get(self, digest: str) -> int | None:
        """The size that manifests agree upon; None if none told, or they disagree."""
        return self._sizes.get(digest)

    def disputes(self, digest: str, size: int) -> bool:
        """Whether a manifest says another size than ``size``."""
        return self._sizes.get(digest, size) != size
