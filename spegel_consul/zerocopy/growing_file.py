"""``GrowingFile``: a file that another process appends to until it is complete.

The runtime writes a download at the end of a file and renames the file when it has all bytes. A descriptor that was
opened before stays good, so a reader needs only the descriptor: the size in fstat(2) tells how far the writer is, and
the link count tells whether the writer has given up. A reader polls, because inotify would tell nothing sooner: the
writer appends pieces of 1 MiB.

A new rule about the state of such a file belongs here. How its bytes are sent belongs to the sender.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from spegel_consul.disk.threads import close


class GrowingFile:
    """An open file that grows. close() closes ``fd``.

    ``total``: the size in bytes that the file will have, None if it is not known; ``committed``: whether the file had
    all bytes when it was opened, so ``total`` is its size. The methods call fstat(2), which does not wait for a disk
    and may be called on the event loop. They raise OSError if the file system has lost the file.
    """

    def __init__(self, fd: int, total: int | None, *, committed: bool = False) -> None:
        self.fd = fd
        self.total = total
        self._committed = committed

    @property
    def complete(self) -> bool:
        """Whether all bytes are in the file. They may still be wrong, because the runtime verifies them later."""
        return self._committed or (self.total is not None and self.size() >= self.total)

    def size(self) -> int:
        """Return the number of bytes in the file now."""
        return os.fstat(self.fd).st_size

    def abandoned(self) -> bool:
        """Whether nobody will append the missing bytes, because the file was deleted before it was complete."""
        return not self._committed and os.fstat(self.fd).st_nlink == 0 and not self.complete

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
