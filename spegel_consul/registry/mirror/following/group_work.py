"""What this node has of a group: its complete blobs, and the downloads of its runtime.

Blobs that the store does not know yet, because they were committed a moment ago, are looked for among the downloads and
then remembered as complete. A new way to find out how far a node is belongs here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.registry.mirror.following.group_claim import Work
from spegel_consul.store import Store

_WITHIN = 0.5  # seconds that a look may take, because a disk may hang
_MOST_DOWNLOADS = 128  # files that one look opens


class GroupWork:
    """Looks into ``store`` for the digests of one group."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._complete: dict[str, int] = {}

    async def look(self, contents: Mapping[str, int], asked: Collection[str], *, quick: bool = False) -> Work:
        """Return what the node has of ``contents``, and of the digests that were ``asked`` for.

        ``quick``: look for downloads of the asked digests only. A look that takes too long returns what it has found.
        """
        serves, have, working, downloads = False, 0, False, 0
        with trio.move_on_after(_WITHIN):
            for text in dict.fromkeys((*asked, *contents)):
                size = self._known(text)
                if size is None and (text in asked or not quick) and downloads < _MOST_DOWNLOADS:
                    downloads += 1
                    size, grows = await self._growing(text)
                    working = working or grows
                if size is not None:
                    have += size
                    serves = serves or text in asked
        return Work(serves, have, working)

    def _known(self, text: str) -> int | None:
        try:
            content = self._store.describe(Digest(text))
        except DigestInvalid:
            return 0
        return content.size if content is not None else self._complete.get(text)

    async def _growing(self, text: str) -> tuple[int | None, bool]:
        """Return the present size of a download, if there is one, and whether it still grows."""
        growing = await self._store.downloading(Digest(text))
        if growing is None:
            return None, False
        with growing, suppress(OSError):  # the file system may lose a file
            size = growing.size()
            if growing.complete:
                self._complete[text] = size
                return size, False
            if not growing.abandoned():
                return size, True
        return None, False
