# Names and passwords that the registry asks for, from a file with `name:password` lines.
#
# Any line opens the registry; the first one is what this node shows to its peers.  So a password is changed without a
# moment of refusal: the new line is put behind the old one on all nodes, then in front of it, then the old one goes.

"""Basic authentication between nodes, and of the runtimes on them (RFC 7617)."""

from __future__ import annotations

import base64
import hmac
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 2.0
_MOST = 64 << 10


class CredentialsError(ValueError):
    """The file can't be used; the message says why."""


class Credentials:
    """What ``path`` says now. Raises CredentialsError if it can't be used at the start; :meth:`run` follows it.

    A change counts when it is seen twice, lest a file that is being written be read half-way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FollowedFile(partial(stamps, (path,)), self._read, twice=True)
        self._known = self._file.load()
        self.version = 1

    @property
    def own(self) -> str:
        """The value of the Authorization field that this node sends to its peers."""
        return self._known[0].decode()

    def accept(self, header: bytes | None) -> bool:
        """Whether ``header``, the value of an Authorization field, is one of those in the file."""
        if header is None:
            return False
        scheme, _, token = header.partition(b" ")
        shown = b"Basic " + token.strip() if scheme.lower() == b"basic" else b""
        # all are compared, in constant time each, so that the time says nothing
        return sum(hmac.compare_digest(shown, each) for each in self._known) > 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the file until cancelled. A file that has become unusable leaves the old lines in force."""
        task_status.started()
        report = ProblemReport(log, "basic auth file is not used", field="error")
        while True:
            await trio.sleep(_LOOK_EVERY)
            known = await self._file.look()
            if known is not None and known != self._known:
                self._known = known
                self.version += 1
            report.tell(self._file.problem)

    def _read(self) -> tuple[bytes, ...]:
        """The value of the Authorization field for each line. Raises CredentialsError."""
        try:
            text = foreign_files.read(self._path, _MOST)
        except OSError as exc:
            raise CredentialsError(f"{self._path} can't be read: {exc.strerror}") from None
        known = []
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, colon, password = line.partition(":")
            if not (name and colon and password):
                raise CredentialsError(f"{self._path}, line {number}: expected name:password")
            known.append(b"Basic " + base64.b64encode(line.encode()))
        if not known:
            raise CredentialsError(f"{self._path} has no name:password line")
        return tuple(known)
