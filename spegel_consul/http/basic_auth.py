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

log = structlog.get_logger(__name__)

_LOOK_EVERY = 2.0
_MOST = 64 << 10


class CredentialsError(Exception):
    """The file can't be used; the message says why."""


class Credentials:
    """What ``path`` says now. Raises CredentialsError if it can't be used at the start; :meth:`run` follows it.

    A change counts when it is seen twice, lest a file that is being written be read half-way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: bytes | None = None
        self._pending: bytes | None = None
        self._known: tuple[bytes, ...] = ()
        self.version = 0
        self._read()

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
        calls, complaint = foreign_files.FileCalls(), ""
        while True:
            await trio.sleep(_LOOK_EVERY)
            try:
                await calls.run(partial(self._read, True))
                complaint = ""
            except (CredentialsError, OSError) as exc:
                if str(exc) != complaint:
                    complaint = str(exc)
                    log.warning("basic auth file is not used", error=complaint)

    def _read(self, again: bool = False) -> None:
        try:
            text = foreign_files.read(self._path, _MOST)
        except OSError as exc:
            raise CredentialsError(f"{self._path} can't be read: {exc.strerror}") from None
        if text == self._text:
            return
        if again and text != self._pending:
            self._pending = text
            return
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
        self._text, self._known = text, tuple(known)
        self.version += 1
