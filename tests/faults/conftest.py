"""Assertions that say what they compared, logs in the report of a fault that was too much, and the document's table."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from lab import run_dir as run_dirs
from lab.process import tail

_MODULES = ("cold_scene", "cold_starts", "consul", "crowds", "machine", "network", "runtimes", "scene", "sidecars")
pytest.register_assert_rewrite(*(f"tests.faults.{name}" for name in _MODULES))

HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.path.is_relative_to(HERE):
        for log in run_dirs.logs():
            if log.name == "sidecar.log":
                report.sections.append((f"{log.parent.parent.name}/{log.name}", tail(log, lines=12)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.faults import table

    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "start")]
    reports.sort(key=lambda report: report.start)
    told = [value for report in reports if report.when == "teardown" for name, value in report.user_properties]
    for each in table.TABLES:
        table.write(each, [value[2] for value in told if value[0] == each.title])
