# Several processes share the files among them (each is a group), so the long ones must not come last: those with real
# parts, first of them the faults, the longest of all, and the simulations.  Files with real parts and others take
# turns, because both wait most of the time: so there are enough processes for both cores, and few real runtimes at a
# time.  The files that look at the ring of tests/web/conftest.py are one group, because otherwise each process would
# start a ring of its own and keep it up to the end of the run.
#
# Some tests measure, and the run ends with a table of what they saw.  Rows travel with the reports of their tests,
# because under pytest-xdist the test runs in another process than the one that prints.

"""Order, and tables at the end of a run: ``record_property("table", (title, header, row))``."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from lab import clock, thorough

# `make nomad`, `make buildkit`, `make kaniko`, `make crio`
_ELSEWHERE = {
    "nomad": "NOMAD",
    "real/runtimes/test_buildkit.py": "BUILDKIT",
    "real/runtimes/test_buildx.py": "BUILDKIT",
    "real/runtimes/test_kaniko.py": "KANIKO",
    "real/runtimes/test_crio.py": "CRIO",
}
collect_ignore = [path for path, variable in _ELSEWHERE.items() if variable not in os.environ]

_LONG_ID = 100

_tables: dict[str, list[list[str]]] = {}


def pytest_configure() -> None:
    gc.disable()  # until all tests are collected, because everything that is made until then stays
    os.environ.pop("COLUMNS", None)  # the width of a worker's terminal, which is none
    # No limit on the wall clock, because a busy machine may stop any process for half a second. The same examples each
    # time, because a change must not wait for an old fault that its run happened to find: `make fresh` looks for those.
    unhurried = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=unhurried, derandomize=not thorough.FRESH
    )
    hypothesis.settings.load_profile("any machine")
    configure = structlog.configure

    def configure_for_now(**settings: Any) -> None:
        """A logger that is kept on first use would have one test's settings in all that come after it."""
        configure(**{**settings, "cache_logger_on_first_use": False})

    structlog.configure = configure_for_now


def pytest_make_parametrize_id(val: object) -> str | None:
    """Return a name for a long value, because each process sends the names of all tests, and each report has one."""
    if isinstance(val, (str, bytes)) and len(val) > _LONG_ID:
        return f"{len(val)} of {val[: _LONG_ID // 2]!r}"
    return None


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = _by_turns(sorted(items, key=_place))
    for item in items:
        # what real parts do takes real time
        if inspect.iscoroutinefunction(getattr(item, "obj", None)) and item.get_closest_marker("real") is None:
            item.add_marker(pytest.mark.trio(run=clock.run))
    if config.pluginmanager.hasplugin("xdist"):
        marks: dict[Path, pytest.MarkDecorator] = {}
        for item in items:
            group = _group(item)
            if group not in marks:
                marks[group] = pytest.mark.xdist_group(group.relative_to(config.rootpath).as_posix())
            item.add_marker(marks[group])


def pytest_collection_finish() -> None:
    gc.freeze()  # the collector would look at all tests again and again, a tenth of the time of the short ones
    gc.enable()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What one test configures, such as the least level, must not decide what the next one sees in the log."""
    before = structlog.get_config()
    yield
    if structlog.get_config() != before:
        structlog.configure(**before)


def _place(item: pytest.Item) -> int:
    if item.get_closest_marker("real") is None:
        return 2 if item.path.parent.name == "sim" else 3
    return int(item.path.parent.name != "faults")


def _by_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """Groups with real parts and others by turns; the ones with real parts are over a little earlier."""
    groups: dict[Path, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    turns: tuple[list[list[pytest.Item]], list[list[pytest.Item]]] = ([], [])
    for group in groups.values():
        turns[group[0].get_closest_marker("real") is None].append(group)
    real, others = turns
    each = len(others) * 4 // (5 * max(1, len(real)))
    ordered = [group for number, first in enumerate(real) for group in (first, *others[number * each :][:each])]
    return [item for group in (*ordered, *others[len(real) * each :]) for item in group]


def _group(item: pytest.Item) -> Path:
    """The file, or the directory if its files share what takes long to start."""
    return item.path.parent if "ring" in getattr(item, "fixturenames", ()) else item.path


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "teardown":
        return
    for name, value in report.user_properties:
        if name == "table":
            title, header, row = value
            _tables.setdefault(title, [header]).append(row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, rows in _tables.items():
        terminalreporter.section(title)
        first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *cells in rows:
            right = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
            terminalreporter.write_line(f"{name:{first}}{right}")
