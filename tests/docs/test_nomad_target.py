"""``make nomad`` says what it misses before it starts anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab.documents import ROOT


def make(nomad: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    # make's own variables are those of the run that this test may be a part of
    return subprocess.run(
        ["make", "--no-print-directory", "nomad-there", f"NOMAD={nomad}"],
        cwd=ROOT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("nomad", ["", "nomad", "./missing", "/bin/true", "/etc/passwd"])
def test_what_is_no_nomad_is_refused_by_its_name(nomad: str) -> None:
    done = make(nomad)
    assert done.returncode != 0
    assert f"'{nomad}' is no Nomad: make nomad NOMAD=/path/to/nomad names its program" in done.stderr


def test_any_program_that_says_it_is_nomad_is_taken_by_its_path_or_its_name(tmp_path: Path) -> None:
    program = tmp_path / "nomad"
    program.write_text("#!/bin/sh\necho Nomad v1.6.5\n")
    program.chmod(0o755)
    for done in (make(str(program)), make("nomad", f"{tmp_path}:/usr/bin:/bin")):
        assert (done.returncode, done.stdout.strip()) == (0, "Nomad v1.6.5"), done.stderr
