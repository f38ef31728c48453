"""A wall clock that a test can move; what measures time within a process does not follow it."""

from __future__ import annotations

from pathlib import Path

from lab import parts


class WallClock:
    """The clock of each process that is started with ``env``, from ``set`` on and until the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set("+0")
        self.env = {
            "LD_PRELOAD": str(parts.faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead: str) -> None:
        """``+67h`` is that much later than it is, ``-1d`` earlier, ``+0`` right."""
        self._path.write_text(ahead)
