"""``FollowedFile``: what files say, read again when somebody has replaced them.

Tokens, certificates, passwords and lists of peers are replaced under a running process by Nomad, Vault, cert-manager or
an editor.  The stamps of the files (:func:`stamps`) tell of a change and cost one system call each; the files are read
and parsed only when the stamps differ from those of the value in use.

* All of it happens in a thread with a time limit, because the disk may hang (``FileCalls``).
* The stamps are taken before the files are read, so that a write in between is the next change.
* Files that can't be used leave the last value in use.  They are read again at each look until they can be used,
  because a repair need not change a stamp.
* With ``twice``, a change counts when two looks in a row see the same stamps, because a file that is written in place
  is complete only when its writer rests.

How often to look, and what to do with a new value or with a problem, belongs to the user of this class.  A new rule
belongs here if it is about noticing that files have changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from spegel_consul.disk import foreign_files

T = TypeVar("T")


def stamps(paths: Iterable[Path]) -> tuple[object, ...]:
    """The stamp of each of ``paths``; None for a file that is not there or can't be seen."""
    found: list[object] = []
    for path in paths:
        try:
            found.append((str(path), *foreign_files.stamp(path)))
        except OSError:
            found.append(None)
    return tuple(found)


class FollowedFile(Generic[T]):
    """Calls ``read`` when ``stamp`` returns another value than for the last value that was read.

    Both are called in a thread and raise OSError or ValueError. ``within``: seconds that a look may take.
    """

    def __init__(
        self,
        stamp: Callable[[], object],
        read: Callable[[], T],
        *,
        twice: bool = False,
        within: float = foreign_files.WITHIN,
    ) -> None:
        self._stamp, self._read, self._twice = stamp, read, twice
        self._calls = foreign_files.FileCalls(within)
        self._known: object = None  # the stamp of the last value that was read
        self._seen: object = None  # the stamp of the last look
        self._new: deque[T] = deque(maxlen=1)
        self.failure: OSError | ValueError | None = None
        """Why the last look did not get the files' value; None when it did, or when nothing has changed."""

    @property
    def problem(self) -> str | None:
        """:attr:`failure` in words."""
        return None if self.failure is None else getattr(self.failure, "strerror", None) or str(self.failure)

    def load(self) -> T:
        """The value now, read without a thread, for a start that needs one. Raises what ``read`` raises."""
        stamp: object = None
        with suppress(OSError):
            stamp = self._stamp()
        value = self._read()
        self._known = self._seen = stamp
        return value

    async def look(self) -> T | None:
        """The new value if there is one. None if nothing has changed, or the files can't be used: see ``problem``."""
        try:
            if await self._calls.run(self._find):
                self.failure = None
        except (OSError, ValueError) as why:
            self.failure = why
        return self._new.pop() if self._new else None

    def _find(self) -> bool:
        """Read the files if they have changed. Whether the value in use, or the new one, is theirs. Called in a thread.

        One thread at a time does this, and what it finds too late for its look is for the next one. A disk that always
        takes too long for a request would keep the value out of use for good otherwise.
        """
        stamp, last = self._stamp(), self._seen
        self._seen = stamp
        if stamp != self._known:
            if self._twice and stamp != last:
                return False
            self._new.append(self._read())
            self._known = stamp
        return True
