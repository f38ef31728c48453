"""A problem that lasts is one line in the log, however often it is met."""

from __future__ import annotations

from typing import Any

import structlog
from structlog.testing import capture_logs

from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)


def told(report: ProblemReport, *problems: str | None, **options: Any) -> list[tuple[str, str, object]]:
    with capture_logs() as said:
        for problem in problems:
            report.tell(problem, **options)
    return [(event["log_level"], event["event"], event.get("problem")) for event in said]


def test_a_problem_is_logged_when_it_begins_changes_and_ends() -> None:
    report = ProblemReport(log, "hindered", "unhindered")
    assert told(report, None) == []
    assert told(report, "one", "one", "two", "two") == [("warning", "hindered", "one"), ("warning", "hindered", "two")]
    assert report.problem == "two"
    assert told(report, None, None) == [("info", "unhindered", None)]
    assert report.problem is None
    assert told(report, "two") == [("warning", "hindered", "two")]


def test_an_end_that_nobody_asks_for_is_not_logged() -> None:
    report = ProblemReport(log, "hindered")
    assert told(report, "one", None, "one") == [("warning", "hindered", "one")] * 2


def test_an_expected_problem_is_an_event_of_its_own() -> None:
    report = ProblemReport(log, "hindered", "unhindered")
    assert told(report, "empty", "empty", expected="catalog empty") == [("info", "catalog empty", "empty")]
    assert told(report, "empty") == []
    assert told(report, None) == [("info", "unhindered", None)]


def test_its_fields_are_in_each_event() -> None:
    report = ProblemReport(log, "hindered", "unhindered", field="error", way="dns")
    with capture_logs() as said:
        report.tell("one")
        report.tell(None)
    assert said == [
        {"event": "hindered", "error": "one", "way": "dns", "log_level": "warning"},
        {"event": "unhindered", "way": "dns", "log_level": "info"},
    ]
