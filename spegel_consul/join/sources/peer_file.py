# A file that somebody else writes: a template that Nomad renders, a list from configuration management.  It may be
# replaced at any time and is sometimes read half written; then it can't be parsed, and the last answer stays.  It is
# looked at once a second, which is one system call, in a thread, and works on every file system.

"""``FileSource``: peers from a file that is written by others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.join.peer_formats import MAX_BYTES, one_line, parse_document
from spegel_consul.join.polled import SourceError
from spegel_consul.peers import PeerInfo

LOOK_EVERY = 1.0
"""Seconds between two looks."""


class FileSource:
    """Reads ``path``, a document as ``reading.parse_document`` takes it, whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: Sequence[PeerInfo] = ()
        self._file = FollowedFile(partial(stamps, (path,)), lambda: parse_document(foreign_files.read(path, MAX_BYTES)))

    @property
    def name(self) -> str:
        return str(self._path)

    async def ask(self) -> Sequence[PeerInfo]:
        """Its first three peers. Raises SourceError."""
        if (peers := await self._file.look()) is not None:
            self._peers = peers
        if self._file.problem is not None:
            raise SourceError(one_line(self._file.problem, 200))
        return self._peers
