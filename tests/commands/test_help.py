"""The help: sections, whole summaries, and what a command tells a person at its end."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from lab.cli_commands import command

from spegel_consul.cli import COMMANDS, cli
from spegel_consul.commands.option_groups import OTHERS, SECTIONS
from spegel_consul.endpoints.check import fail, ok, verdict, warn


def test_each_flag_of_the_sidecar_is_in_one_section() -> None:
    listed = [f"--{flag}" for flags in SECTIONS.values() for flag in flags if flag != "help"]
    known = [param.opts[-1] for param in command("registry").params]
    assert sorted(listed) == sorted(known), "list a new flag in commands/option_groups.py"


def test_the_sections_are_in_the_help_with_their_flags() -> None:
    text = CliRunner().invoke(cli, ["registry", "--help"]).output
    titles = [line.removesuffix(":") for line in text.splitlines() if line and line[0] != " " and line.endswith(":")]
    assert titles == list(SECTIONS)
    assert OTHERS not in text
    for title, flags in SECTIONS.items():
        body = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert all(f"--{flag}" in body for flag in flags), title


@pytest.mark.parametrize("width", [60, 80, 200])
def test_summaries_are_whole_at_any_width(width: int) -> None:
    text = " ".join(CliRunner().invoke(cli, ["--help"], terminal_width=width).output.split())
    for found in COMMANDS.values():
        assert found.summary in text


FINE, BAD, FATAL, HM = ok("a", "x"), fail("b", "x"), fail("c", "x", fatal=True), warn("d", "x")


@pytest.mark.parametrize(
    ("checks", "line"),
    [
        ([FINE, FINE], "ready: all 2 checks are ok"),
        ([FINE, HM], "ready, with 1 warning (d)"),
        ([HM, HM], "ready, with 2 warnings (d)"),
        ([FINE, BAD, HM], "not ready: 1 of 3 checks failed (b), and 1 warning (d); pulls may not use the mirror"),
        ([BAD, FATAL, BAD], "not ready: 3 of 3 checks failed (b, c); the sidecar does not start"),
    ],
)
def test_preflight_ends_with_its_verdict(checks: list, line: str) -> None:
    assert verdict(checks) == line
