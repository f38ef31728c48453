"""The table of how long the cluster was without a leader, printed at the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from lab.process import check_took

_TITLE = "the leader's failover, three servers"
_HEADER = ("event", "measured", "allowed")


@dataclass(frozen=True)
class Table:
    """What was measured, beside what is allowed."""

    _record: Callable[[str, object], None]

    def within(self, what: str, took: float, allowed: float) -> None:
        """Add a row, then fail if it took too long for a machine of this load."""
        self._add(what, f"{took:.2f} s", f"{allowed:g} s")
        check_took(took, allowed, what)

    def is_true(self, what: str, seen: str) -> None:
        """Add a row for something that was seen not to happen."""
        self._add(what, seen, seen)

    def _add(self, *row: str) -> None:
        self._record("table", (_TITLE, _HEADER, row))


@pytest.fixture
def table(record_property: Callable[[str, object], None]) -> Table:
    return Table(record_property)
