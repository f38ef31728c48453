"""Each run of a job gives all values: a variable that is not given has its default again, also in a running cluster."""

from __future__ import annotations

import re

import pytest
from lab import documents

JOBS = documents.ROOT / "jobs"
PAGES = [page for page in documents.PAGES if any("nomad job run" in line for line in documents.lines(page))]
COMMENTS = [path.name for path in JOBS.glob("*.hcl") if "#   nomad job run" in path.read_text()]


def runs(lines: list[str]) -> list[tuple[str, str]]:
    """The commands that run a job, and the text of the job's file."""
    found = [(line, re.search(r"nomad job run .*?([\w-]+\.nomad\.hcl)", line)) for line in lines]
    return [(line, (JOBS / job[1]).read_text()) for line, job in found if job]


def comments(name: str) -> list[str]:
    """The commands of a file's comments."""
    text = re.sub(r"\\\n# *", "", (JOBS / name).read_text())
    return re.findall(r"^#   (nomad job run .*)", text, re.M)


def given_runtime(command: str) -> bool:
    return "-var-file=" in command or "-var runtime=" in command


@pytest.mark.parametrize("page", PAGES)
def test_each_run_says_which_runtime_the_nodes_have_and_which_image_they_get(page: str) -> None:
    lines = documents.lines(page)
    for command, job in runs(lines):
        assert given_runtime(command) or "var.containerd_namespace" not in job, command
        before = lines[: lines.index(command)]
        image = "-var image=" in command or any(line.startswith("export NOMAD_VAR_image=") for line in before)
        assert image or 'variable "image"' not in job, command


@pytest.mark.parametrize("name", COMMENTS)
def test_so_do_the_jobs_comments(name: str) -> None:
    for command, job in runs(comments(name)):
        assert given_runtime(command) or "var.containerd_namespace" not in job, command


def test_the_pages_with_commands_are_found() -> None:
    assert {"README.md", "docs/nomad.md", "docs/security.md", "jobs/README.md"} <= set(PAGES)
    assert "spegel.nomad.hcl" in COMMENTS
