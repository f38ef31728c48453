# A file that somebody else writes: a template that Nomad renders, a list from configuration management.  It may be
# replaced at any time and is sometimes read half written; then it can't be parsed, and the last answer stays.  It is
# looked at once a second, which is one system call, in a thread, and works on every file system.

"""``FileSource``: peers from a file that is written by others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.join.peer_formats import MAX_BYTES, one_line, parse_document
from spegel_consul.join.polled import SourceError
from spegel_consul.peers import PeerInfo

LOOK_EVERY = 1.0
"""Seconds between two looks."""


class FileSource:
    """Reads ``path``, a document as ``reading.parse_document`` takes it, whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._peers: Sequence[PeerInfo] = ()
        self._calls = foreign_files.FileCalls()

    @property
    def name(self) -> str:
        return str(self._path)

    async def ask(self) -> Sequence[PeerInfo]:
        """Its first three peers. Raises SourceError."""
        try:
            await self._calls.run(self._look)
        except OSError as why:
            raise SourceError(why.strerror or str(why)) from None
        except ValueError as why:
            raise SourceError(one_line(str(why), 200)) from None
        return self._peers

    def _look(self) -> None:
        """Read the file if it has changed. Called in a thread. Raises OSError, ValueError."""
        stamp = foreign_files.stamp(self._path)
        if stamp != self._stamp:
            self._stamp = None
            self._peers = parse_document(foreign_files.read(self._path, MAX_BYTES))
            self._stamp = stamp
