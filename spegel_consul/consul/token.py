"""The ACL token, fixed or from a file that is replaced while we run."""

from __future__ import annotations

from pathlib import Path

_WRONG = "has characters that no token has (printable ASCII only)"


class TokenSource:
    """Gives the token to send now.

    A file wins over the fixed token and is read again whenever it changed: Nomad replaces the token of a
    workload identity about once an hour. While the file can't be read, the last token read stays in use.
    """

    problem: str | None = None
    """Why there is no token, or not the file's, in one line for people; None when all is well."""

    def __init__(self, token: str | None = None, path: str | None = None) -> None:
        self._fixed = _usable(token or "")
        if token and token.strip() and self._fixed is None:
            self.problem = f"the token that was given: {_WRONG}"
        self._path = Path(path) if path else None
        self._stamp: tuple[int, int, int] | None = None
        self._read: str | None = None

    def current(self) -> str | None:
        """The token, or None for requests without one."""
        if self._path is not None:
            try:
                info = self._path.stat()
                stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
                if stamp != self._stamp:
                    text = self._path.read_text("utf-8-sig").strip()  # Windows' editors begin a file with a BOM
                    self._stamp = stamp
                    self._read = _usable(text) or self._read
                    # an empty file is one that is being written
                    empty = None if self._read else "empty"
                    reason = _WRONG if text and _usable(text) is None else empty
                    self.problem = reason and f"CONSUL_HTTP_TOKEN_FILE: {self._path}: {reason}"
            except OSError as why:
                self._stamp = None
                self.problem = f"CONSUL_HTTP_TOKEN_FILE: {self._path}: {why.strerror}"
            except UnicodeDecodeError:
                self._stamp = None
                self.problem = f"CONSUL_HTTP_TOKEN_FILE: {self._path}: not text"
        return self._read or self._fixed


def _usable(text: str) -> str | None:
    """The token in ``text``, without the blanks around it; None if it can't be sent in a header."""
    token = text.strip()
    return token if token and all("!" <= letter <= "~" for letter in token) else None
