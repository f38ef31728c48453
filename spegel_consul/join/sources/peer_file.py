"""``FileSource``: peers from a file that another program writes.

The file is a template of Nomad, or a list of the configuration management.  It may be replaced at any time, and is
sometimes read half written; then it can't be parsed, and the last answer stays.  Its stamp is read once a second, in a
thread.  That is one system call, and works on every file system.

A new rule about the file belongs here.  The forms of a document belong to ``peer_formats``.
"""

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
"""Seconds between two readings of the file's stamp."""


class FileSource:
    """Reads ``path``, a document in a form of ``peer_formats.parse_document``, when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: Sequence[PeerInfo] = ()
        self._file = FollowedFile(partial(stamps, (path,)), lambda: parse_document(foreign_files.read(path, MAX_BYTES)))

    @property
    def name(self) -> str:
        return str(self._path)

    async def ask(self) -> Sequence[PeerInfo]:
        """The first three peers of the document. Raises SourceError."""
        if (peers := await self._file.look()) is not None:
            self._peers = peers
        if self._file.problem is not None:
            raise SourceError(one_line(self._file.problem, 200))
        return self._peers
