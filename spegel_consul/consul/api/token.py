"""The ACL token, fixed or from a file that is replaced while we run."""

from __future__ import annotations

from pathlib import Path

from spegel_consul.disk import foreign_files

_SIZE = 64 << 10  # bytes; a JWT with many claims has some thousand
_WITHIN = 1.0  # seconds that a look at the file may hold up a request, such as a renewal
_WRONG = "has characters that no token has (printable ASCII only)"


class TokenSource:
    """Gives the token to send now.

    A file wins over the fixed token and is read again whenever it changed: Nomad replaces the token of a
    workload identity about once an hour. While the file can't be read, the last token read stays in use.
    """

    problem: str | None = None
    """Why there is no token, or not the file's, in one line for people; None when all is well."""

    def __init__(
        self, token: str | None = None, path: str | None = None, setting: str = "CONSUL_HTTP_TOKEN_FILE"
    ) -> None:
        self._setting = setting  # which names the file, for people
        self._fixed = _usable(token or "")
        if token and token.strip() and self._fixed is None:
            self.problem = f"the token that was given: {_WRONG}"
        self._path = Path(path) if path else None
        self._calls = foreign_files.FileCalls(_WITHIN)
        self._stamp: tuple[int, int, int] | None = None
        self._read: str | None = None

    async def current(self) -> str | None:
        """The token, or None for requests without one. Takes a second at most, however the file's disk is."""
        if self._path is not None:
            try:
                await self._calls.run(self._look)
            except OSError as why:
                self._fail(why.strerror or str(why))
        return self._read or self._fixed

    def _look(self) -> None:
        """Read the file if it has changed. Called in a thread. Raises OSError."""
        assert self._path is not None
        stamp = foreign_files.stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            # Windows' editors begin a file with a BOM
            text = foreign_files.read(self._path, _SIZE).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            self._fail("not text")
            return
        self._stamp = stamp
        self._read = _usable(text) or self._read
        # an empty file is one that is being written
        empty = None if self._read else "empty"
        reason = _WRONG if text and _usable(text) is None else empty
        self.problem = reason and f"{self._setting}: {self._path}: {reason}"

    def _fail(self, reason: str) -> None:
        self._stamp = None
        self.problem = f"{self._setting}: {self._path}: {reason}"


def _usable(text: str) -> str | None:
    """The token in ``text``, without the blanks around it; None if it can't be sent in a header."""
    token = text.strip()
    return token if token and all("!" <= letter <= "~" for letter in token) else None
