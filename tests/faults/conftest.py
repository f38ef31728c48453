"""One cluster for all faults, and the table of what they did at the end of the run."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from lab import parts
from lab import run_dir as run_dirs
from lab.process import tail

from tests.faults import scene as scene_module
from tests.faults import table
from tests.faults.scene import Row, Scene

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "takes_minutes: a fault that is made by `make faults` only")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    if config.pluginmanager.hasplugin("xdist"):
        for item in ours:
            item.add_marker(pytest.mark.xdist_group("faults"))
    if not scene_module.ALL:
        late = [item for item in ours if item.get_closest_marker("takes_minutes") is not None]
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if item not in late]


@pytest.fixture(scope="session")
def _scene() -> Iterator[Scene]:
    parts.check()
    with Scene() as scene:
        yield scene


@pytest.fixture
def scene(_scene: Scene, record_property: object) -> Iterator[Scene]:
    """The cluster, well, with a load on it."""
    told = len(_scene.rows)
    yield _scene
    for row in _scene.rows[told:]:
        record_property(table.PROPERTY, row.to_json())  # type: ignore[operator]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.path.is_relative_to(HERE):
        for log in (log for log in run_dirs.logs() if log.name == "sidecar.log"):
            report.sections.append((f"{log.parent.parent.name}/{log.name}", tail(log, lines=12)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # rows come with the report of the teardown, also from another process
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "start")]
    reports.sort(key=lambda report: report.start)
    told = [value for report in reports for name, value in report.user_properties if name == table.PROPERTY]
    rows = [Row.from_json(value) for value in dict.fromkeys(told)]
    if rows:
        terminalreporter.section("what pulls noticed of each fault")
        for line in table.lines(rows):
            terminalreporter.write_line(line)
        table.write(rows)
