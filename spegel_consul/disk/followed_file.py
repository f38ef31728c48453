"""``FollowedFile``: the value of files, read again when they have changed.

Tokens, certificates, passwords and lists of peers are replaced under a running process by Nomad, Vault, cert-manager or
an editor. The stamps of the files (:func:`stamps`) show a change and cost one system call each. The files are read and
parsed only when the stamps differ from those of the value in use.

* Stamps and files are read in a thread with a time limit, because the disk may hang (``FileCalls``).
* The stamps are taken before the files are read, so that a write in between is the next change.
* Unusable files leave the last value in use. They are read again at each look until they are usable, because a repair
  need not change a stamp.
* With ``twice``, a change counts when two looks in a row see the same stamps, because a file that is written in place
  may be incomplete while its writer is active.

The period of the looks and the reaction to a new value or a problem belong to the user of this class. A new rule about
the detection of changes belongs here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words

T = TypeVar("T")


def stamps(paths: Iterable[Path]) -> tuple[object, ...]:
    """The stamp of each of ``paths``; None for a file that does not exist or can't be read."""
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
        """The failure of the last look; None if it succeeded or if the files have not changed."""

    @property
    def problem(self) -> str | None:
        """:attr:`failure` in words."""
        return None if self.failure is None else in_words(self.failure)

    def load(self) -> T:
        """The value now, read without a thread, for the start-up. Raises the exceptions of ``read``."""
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
        """Read the files if they have changed, in a thread. Returns whether the last value read is current.

        One thread at a time does this. A value that arrives after the time limit is returned by the next look, because
        otherwise a disk that is always late would keep the new value from use.
        """
        stamp, last = self._stamp(), self._seen
        self._seen = stamp
        if stamp != self._known:
            if self._twice and stamp != last:
                return False
            self._new.append(self._read())
            self._known = stamp
        return True
