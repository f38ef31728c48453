"""``TokenSource``: the ACL token, fixed or from a file that is replaced while this process runs.

Nomad replaces the token of a workload identity about once an hour.  So the file is examined before each request.

A new rule about the choice or the form of a token belongs here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.disk.followed_file import FollowedFile, stamps

_SIZE = 64 << 10  # bytes; a JWT with many claims has some thousand
_WITHIN = 1.0  # seconds by which the disk may delay a request, such as a renewal
_WRONG = "a token has only printable ASCII characters without blanks"


class TokenSource:
    """The token to send now.

    A file replaces the fixed token, and is read again when it has changed. While it can't be read, the last token that
    was read stays in use.
    """

    problem: str | None = None
    """One line for people that says why there is no token, or an old one; None if there is no problem."""

    def __init__(
        self, token: str | None = None, path: str | None = None, setting: str = "CONSUL_HTTP_TOKEN_FILE"
    ) -> None:
        self._where = f"{setting}: {path}"  # for people
        self._fixed = _usable(token or "")
        if token and token.strip() and self._fixed is None:
            self.problem = f"the token that was given: {_WRONG}"
        self._read: str | None = None
        self._file: FollowedFile[str] | None = None
        if path:
            file = Path(path)
            self._file = FollowedFile(partial(stamps, (file,)), partial(self._parsed, file), within=_WITHIN)

    async def current(self) -> str | None:
        """The token, or None for requests without one. Takes at most a second, because the file's disk may hang."""
        if self._file is not None:
            self._read = await self._file.look() or self._read
            self.problem = self._file.problem and f"{self._where}: {self._file.problem}"
        return self._read or self._fixed

    def _parsed(self, path: Path) -> str:
        """The token in the file. Raises OSError, ValueError."""
        try:
            # because editors on Windows begin a file with a byte order mark
            text = foreign_files.read(path, _SIZE).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError("not text") from None
        if not text and self._read:
            return self._read  # because an empty file is being written
        token = _usable(text)
        if token is None:
            raise ValueError(_WRONG if text else "empty")
        return token


def _usable(text: str) -> str | None:
    """``text`` without blanks around it; None if it can't be sent in a header."""
    token = text.strip()
    return token if token and all("!" <= letter <= "~" for letter in token) else None
