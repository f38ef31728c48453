"""What the documentation tells people to type does what it says, on a node of a real ring."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner
from lab import parts
from lab.documents import PAGES, ROOT, lines, place

from spegel_consul.cli import cli

NOT_RUN = {
    "make ": ".ci/run does",
    ".ci/install-locked ": "make install does, as .ci/run",
    "python3 -m venv ": "as before",
    "ln -s ": "it changes the machine",
    "spegel/bin/python -m pip install": "there is no release so far; docs/releasing.md says what was tried",
    "sha256sum --check": "as before",
    "cosign ": "as before",
    "gh ": "as before",
    "cd ": "a page's commands are run where the page is",
    "spegel-consul registry": "tests/real/test_started.py does",
    "spegel-consul preheat": "tests/real/test_preheat.py does, on nodes with runtimes",
    "consul acl ": "tests/real/consul/test_folder.py does, with ACLs",
    "../consul/acl/binding-rule.sh ": "as before",
    "docker run ": "tests/real/test_image.py does, with the image",
    "nomad ": "`make nomad` does, on a real one",
    "spegel-consul leader --bootstrap-kind=nomad-var": "as before",
    "export NOMAD_VAR_": "as before",
    "sed -i -e ": "tests/jobs/test_jobs.py does, on a copy",
    "systemctl restart docker": "no systemd is here; tests/real/runtimes restarts Dockers",
    "systemctl restart buildkit": "no systemd is here; `make buildkit` restarts one",
    "skopeo copy ": "tests/real/runtimes/test_podman.py does, where there is an image",
    "crane --insecure ": "as before",
    "podman pull ": "as before",
    "ctr --namespace ": "tests/real/runtimes/test_other_clients.py does",
}
"""By how they begin: commands that are not run here, but elsewhere, or why not."""
STARTS = ("make ", "spegel-consul registry", "nomad job run ")
RUN = re.compile(r"(NO_COLOR=1 )?(spegel-consul|curl|consul|dig) ")


def starts() -> list[tuple[Path, str]]:
    """Commands that start things, and where."""
    return [(place(page), line) for page in PAGES for line in lines(page) if line.startswith(STARTS)]


def commands() -> list[tuple[Path, str]]:
    """Where each is run, and it."""
    found = [(place(page), line) for page in PAGES for line in lines(page)]
    return [(where, line) for where, line in found if RUN.match(line) and not line.startswith(tuple(NOT_RUN))]


@pytest.mark.real
def test_every_command_of_the_documentation_works(ring, tmp_path: Path) -> None:
    assert len(commands()) >= 35
    node = ring[1]
    programs = parts.path(parts.consul(), Path(sys.executable))
    environment = {**os.environ, "PATH": programs, "CONSUL_HTTP_ADDR": "127.0.0.1:8500"}
    # what they write below /etc is kept from one to the next, and from this machine
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=shutil.ignore_patterns("containerd", "docker"))
    for runtime in ("containerd", "docker"):
        (etc / runtime).mkdir()
    shell = ["bash", "-o", "pipefail", "-c"]
    for where, command in commands():
        line = command.replace("10.0.0.7:23456", f"{node.ip}:9090").replace("10.0.0.7", node.ip)
        done = subprocess.run(
            node.netns.inside([*shell, f"mount --bind {etc} /etc && {line}"], private_mounts=True),
            cwd=where, capture_output=True, text=True, timeout=60, env=environment, check=False,
        )  # fmt: skip
        # preflight ends with 1 when it has found something, and this node has no runtime
        well = (0, 1) if command.startswith("spegel-consul preflight") else (0,)
        assert done.returncode in well, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command
        assert '"error"' not in done.stdout, f"{command}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_each_command_is_run_or_it_is_said_why_not() -> None:
    used = set()
    for page in PAGES:
        for line in lines(page):
            excused = [start for start in NOT_RUN if line.startswith(start)]
            assert excused or RUN.match(line), f"{page}: nothing runs {line!r}"
            used.update(excused)
    assert used == set(NOT_RUN)


def test_commands_that_start_things_name_what_there_is() -> None:
    options = CliRunner().invoke(cli, ["registry", "--help"]).output
    targets = (ROOT / "Makefile").read_text()
    assert {line.split()[0] for _, line in starts()} == {"make", "spegel-consul", "nomad"}
    for where, line in starts():
        words = line.partition(" #")[0].split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.M), line
        elif words[0] == "nomad":
            files = [word.removeprefix("-var-file=") for word in words if ".hcl" in word]
            assert any(all((at / file).is_file() for file in files) for at in (where, ROOT / "jobs")), line
        else:
            for word in words[2:]:
                assert not word.startswith("--") or f"  {word.partition('=')[0]} " in options, line


def test_the_picture_is_self_contained_and_names_itself() -> None:
    text = (ROOT / "docs/picture.svg").read_text()
    picture = ElementTree.fromstring(text)
    assert picture.attrib["aria-labelledby"] == "title about"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(?:href|src)=|url\((?!#)", text)
