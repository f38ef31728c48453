"""Basic authentication (RFC 7617) of peers and runtimes, from a file with ``name:password`` lines.

The registry accepts each line of the file, and this node sends the first line to its peers. So a password is replaced
without a refused request: the new line is added after the old one on all nodes, then moved before it, then the old one
is removed. The file is followed while the sidecar runs. A new rule about accepted credentials belongs here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.error_words import in_words
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 2.0  # seconds
_SIZE_LIMIT = 64 << 10  # bytes


class CredentialsError(ValueError):
    """The file can't be used; the message says why."""


class Credentials:
    """The credentials in ``path``, which :meth:`run` follows. Raises CredentialsError if the first load fails.

    A change counts when it is seen twice, because a file that is being written may be incomplete.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FollowedFile(partial(stamps, (path,)), self._read, twice=True)
        self._known = self._file.load()
        self.version = 1

    @property
    def own(self) -> str:
        """The value of the Authorization header that this node sends to its peers."""
        return self._known[0].decode()

    def accept(self, header: bytes | None) -> bool:
        """Whether ``header``, the value of an Authorization header, matches a line of the file."""
        if header is None:
            return False
        scheme, _, token = header.partition(b" ")
        shown = b"Basic " + token.strip() if scheme.lower() == b"basic" else b""
        # compared with all lines, each in constant time, so that the time reveals nothing
        return sum(hmac.compare_digest(shown, each) for each in self._known) > 0

    def proof(self, message: str) -> str:
        """Proof of the first line for ``message``, which does not show the line: its HMAC with SHA-256, in hex."""
        return _proof(self._known[0], message)

    def proves(self, message: str, proof: str) -> bool:
        """Whether ``proof`` is that of ``message`` by any line of the file."""
        shown = proof.encode("utf-8", "replace")
        return sum(hmac.compare_digest(shown, _proof(each, message).encode()) for each in self._known) > 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the file until cancelled. If it becomes unusable, the old lines stay in force."""
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
        """The value of the Authorization header for each line. Raises CredentialsError."""
        try:
            text = foreign_files.read(self._path, _SIZE_LIMIT)
        except OSError as exc:
            raise CredentialsError(f"{self._path} can't be read: {in_words(exc)}") from None
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


def _proof(line: bytes, message: str) -> str:
    return hmac.new(line, message.encode(), hashlib.sha256).hexdigest()
