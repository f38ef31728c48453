"""What the documentation tells people to type does what it says, on a node of a real ring."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner
from lab import parts

from spegel_consul.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/cli.md", "docs/metrics.md", "docs/architecture.md", "docs/comparison.md", "docs/faq.md"]
STARTS = ("make ", "spegel-consul registry", "nomad job run ")
"""Commands that start things: .ci/run and the tests with real parts do."""


def blocks(page: str) -> list[str]:
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", (ROOT / page).read_text(), re.M | re.S)
    return [textwrap.dedent(block) for _, block in found]


def starts() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page) for line in re.sub(r"\\\n *", "", block).splitlines()]
    return [line for line in lines if line.startswith(STARTS)]


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page) for line in block.splitlines()]
    return [
        line
        for line in lines
        if re.match(r"(NO_COLOR=1 )?(spegel-consul|curl|consul|dig) ", line) and not line.startswith(STARTS)
    ]


@pytest.mark.real
def test_every_command_of_the_documentation_works(ring, tmp_path: Path) -> None:
    assert len(commands()) >= 18
    node = ring[1]
    programs = parts.path(parts.consul(), Path(sys.executable))
    environment = {**os.environ, "PATH": programs, "CONSUL_HTTP_ADDR": "127.0.0.1:8500"}
    # what they write below /etc is kept from one to the next, and from this machine
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=shutil.ignore_patterns("containerd", "docker"))
    for runtime in ("containerd", "docker"):
        (etc / runtime).mkdir()
    shell = ["bash", "-o", "pipefail", "-c"]
    for command in commands():
        line = command.replace("10.0.0.7", node.ip)
        done = subprocess.run(
            node.netns.inside([*shell, f"mount --bind {etc} /etc && {line}"], private_mounts=True),
            capture_output=True, text=True, timeout=60, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
        assert '"error"' not in done.stdout, f"{command}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_each_block_of_commands_is_one_that_is_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            for line in re.sub(r"\\\n", "", block).splitlines():
                assert line in commands() or line.startswith(STARTS), f"{page}: nothing runs {line!r}"


def test_commands_that_start_things_name_what_there_is() -> None:
    options = CliRunner().invoke(cli, ["registry", "--help"]).output
    targets = (ROOT / "Makefile").read_text()
    assert {line.split()[0] for line in starts()} == {"make", "spegel-consul", "nomad"}
    for line in starts():
        words = line.partition(" #")[0].split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.M), line
        elif words[0] == "nomad":
            assert all((ROOT / word.removeprefix("-var-file=")).is_file() for word in words[3:]), line
        else:
            for word in words[2:]:
                assert not word.startswith("--") or f"  {word.partition('=')[0]} " in options, line


def test_the_picture_is_self_contained_and_names_itself() -> None:
    text = (ROOT / "docs/picture.svg").read_text()
    picture = ElementTree.fromstring(text)
    assert picture.attrib["aria-labelledby"] == "title about"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(?:href|src)=|url\((?!#)", text)
