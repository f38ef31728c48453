"""What this node has of a group: its complete blobs, and the downloads of its runtime.

All downloads are told by one look at the disk. Blobs that the store does not know yet, because they were committed a
moment ago, are opened and then remembered as complete. A new way to find out how far a node is belongs here.
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
_MOST_OPENED = 16  # files that one look opens


class GroupWork:
    """Looks into ``store`` for the digests of one group."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._complete: dict[str, int] = {}

    async def look(self, contents: Mapping[str, int], asked: Collection[str]) -> Work:
        """Return what the node has of ``contents``, and of the digests that were ``asked`` for.

        A look that takes too long returns what it has found.
        """
        serves, have, working, opened = False, 0, False, 0
        left = sum(contents.values())
        with trio.move_on_after(_WITHIN):
            downloads = await self._store.downloads()
            for text in dict.fromkeys((*asked, *contents)):
                size = self._known(text)
                if size is None and (size := downloads.growing.get(Digest(text))) is not None:
                    if size < contents.get(text, size + 1):
                        working = True
                    else:
                        self._complete[text] = size
                elif size is None and Digest(text) in downloads.ended and opened < _MOST_OPENED:
                    opened += 1
                    size = await self._committed(text)
                if size is not None:
                    have += size
                    left -= min(size, contents.get(text, 0))
                    serves = serves or text in asked
        return Work(serves, have, working, left)

    def _known(self, text: str) -> int | None:
        try:
            content = self._store.describe(Digest(text))
        except DigestInvalid:
            return 0
        return content.size if content is not None else self._complete.get(text)

    async def _committed(self, text: str) -> int | None:
        """Return the size of a blob whose download has ended; None if it was aborted."""
        growing = await self._store.downloading(Digest(text))
        if growing is None:
            return None
        with growing, suppress(OSError):  # the file system may lose a file
            if growing.complete:
                self._complete[text] = growing.size()
        return self._complete.get(text)
