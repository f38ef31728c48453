"""A problem that lasts is one line in the log, however often it is met; a log that can't be written is no problem."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from spegel_consul.log import LossyStream, ProblemReport

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


REFUSED = "500 rpc error making call: dial tcp <nil>->10.0.0.{}:8300: connect: connection refused"
SLOW = "500 rpc error making call: read tcp 10.0.0.1:{}->10.0.0.2:8300: i/o timeout"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (REFUSED, ("2", "3", "103")),
        (SLOW, ("43122", "5012")),
        ("dial tcp {}: no route to host", ("[fd00::2]:8300", "[fe80::1%eth0]:8300", "10.0.0.3:8300")),
        ("no answer within {}", ("1.3 s", "12 s", "1m30s", "250ms")),
        ("invalid session {}", ("3fa85f64-5717-4562-b3fc-2c963f66afa6", "ffffffff-ffff-4fff-bfff-ffffffffff00")),
    ],
)
def test_a_text_with_another_address_duration_or_id_is_no_other_problem(text: str, parts: tuple[str, ...]) -> None:
    report = ProblemReport(log, "hindered", "unhindered")
    texts = [text.format(part) for part in parts]
    assert told(report, *texts, *texts) == [("warning", "hindered", texts[0])]
    assert report.problem == texts[-1]
    assert told(report, "another") == [("warning", "hindered", "another")]
    assert told(report, None, texts[1])[1:] == [("warning", "hindered", texts[1])]


def test_problems_in_turn_are_logged_once_each_until_the_end() -> None:
    """As of two servers that are away in two ways."""
    report = ProblemReport(log, "hindered", "unhindered")
    one, two = REFUSED.format(2), SLOW.format(43122)
    assert told(report, *(one, two) * 5) == [("warning", "hindered", one), ("warning", "hindered", two)]
    assert report.problem == two
    assert told(report, None) == [("info", "unhindered", None)]
    # kinds without end are no memory without end
    assert len(told(report, *(f"problem {number}" for number in range(1000)))) == 1000
    assert len(report._logged) <= 16


def test_without_an_event_of_the_end_the_last_event_is_of_the_current_problem() -> None:
    report = ProblemReport(log, "hindered")
    assert [problem for *_, problem in told(report, "one", "two", "two", "one")] == ["one", "two", "one"]


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


def test_lines_for_a_full_disk_are_dropped() -> None:
    with Path("/dev/full").open("w") as full:
        LossyStream(full.fileno()).write("lost\n")


def test_a_line_that_was_cut_off_does_not_spoil_the_next_one() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stream = LossyStream(writing)
    stream.write("x" * (1 << 20) + "\n")  # more than a pipe takes
    stream.write("lost\n")
    began = os.read(reading, 1 << 20)
    assert set(began) == set(b"x")
    for line in ("one\n", "two\n"):
        stream.write(line)
    assert os.read(reading, 100) == b"\none\ntwo\n"
    os.close(reading)
    stream.write("lost too\n")
    os.close(writing)
