"""The ACL token, fixed or from a file that is replaced while we run."""

from __future__ import annotations

from pathlib import Path


class TokenSource:
    """Gives the token to send now.

    A file wins over the fixed token and is read again whenever it changed: Nomad replaces the token of a
    workload identity about once an hour. While the file can't be read, the last token read stays in use.
    """

    problem: str | None = None
    """Why the file gives no token, in one line for people; None when all is well."""

    def __init__(self, token: str | None = None, path: str | None = None) -> None:
        self._fixed = token
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
                    # an empty file is one that is being written
                    self._read = self._path.read_text("utf-8").strip() or self._read
                    self._stamp = stamp
                self.problem = None if self._read else f"CONSUL_HTTP_TOKEN_FILE: {self._path}: empty"
            except OSError as why:
                self._stamp = None
                self.problem = f"CONSUL_HTTP_TOKEN_FILE: {self._path}: {why.strerror}"
            except UnicodeDecodeError:
                self._stamp = None
                self.problem = f"CONSUL_HTTP_TOKEN_FILE: {self._path}: not text"
        return self._read or self._fixed
