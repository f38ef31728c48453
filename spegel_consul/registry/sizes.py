# Whether a blob is verified before it is sent goes by its size, and of that a peer could lie, to have its wrong bytes
# streamed.  The manifest, which a runtime asks for first, says how large its blobs are, and its bytes are verified.

"""How large blobs are, as manifests say that came by."""

from __future__ import annotations

import json
from collections import OrderedDict

_MOST = 2048
_MOST_OF_ONE = 512
_LARGEST = 256 << 10  # no real one of an image is larger, and it is parsed on the event loop


class Sizes:
    """Bytes by digest; the latest are remembered."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def learn(self, manifest: bytes) -> None:
        """Of the blobs that ``manifest`` names, which is a JSON object, and whose bytes are known to be right."""
        if len(manifest) > _LARGEST:
            return
        named = json.loads(manifest)
        layers = named.get("layers")
        for blob in [named.get("config"), *(layers if isinstance(layers, list) else [])][:_MOST_OF_ONE]:
            if isinstance(blob, dict):
                digest, size = blob.get("digest"), blob.get("size")
                if isinstance(digest, str) and isinstance(size, int) and len(digest) <= 200:
                    self._sizes[digest] = size
                    self._sizes.move_to_end(digest)
        while len(self._sizes) > _MOST:
            self._sizes.popitem(last=False)

    def get(self, digest: str) -> int | None:
        """None if no manifest told."""
        return self._sizes.get(digest)
