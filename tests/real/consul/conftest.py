"""The table of how long the cluster was without a leader, printed at the end of the run."""

from __future__ import annotations

import pytest

_rows: list[tuple[str, str, str]] = []


class Table:
    """What was measured, beside what is allowed."""

    def within(self, what: str, took: float, allowed: float) -> None:
        """Add a row, then fail if it took too long."""
        _rows.append((what, f"{took:.2f} s", f"{allowed:g} s"))
        assert took <= allowed, f"{what}: {took:.2f} s, allowed are {allowed:g} s"

    def is_true(self, what: str, seen: str) -> None:
        """Add a row for something that was seen not to happen."""
        _rows.append((what, seen, seen))


@pytest.fixture(scope="session")
def table() -> Table:
    return Table()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("the leader's failover, three servers")
    width = max(len(what) for what, _, _ in _rows)
    terminalreporter.write_line(f"{'event':{width}}  {'measured':>12}  {'allowed':>12}")
    for what, took, allowed in _rows:
        terminalreporter.write_line(f"{what:{width}}  {took:>12}  {allowed:>12}")
