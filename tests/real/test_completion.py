"""Completion in real shells, with the lines that the documentation says to put into their configuration."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import parts
from lab.process import HANG

from spegel_consul.cli import COMMANDS

pytestmark = pytest.mark.real

ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {**ENVIRONMENT, "HOME": str(tmp_path)}


def said(home: dict[str, str], shell: str, *arguments: str) -> list[str]:
    command = [parts.system(shell), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=home, check=True).stdout.split(
        "\n"
    )


def test_bash(home: dict[str, str]) -> None:
    script = (
        "source <(spegel-consul completion bash)\n"
        'typed() { COMPREPLY=() COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n'
        '_spegel_consul_completion "$1"; echo "${COMPREPLY[@]}"; }\n'
        "typed spegel-consul cl; typed spegel-consul status --no; typed spegel-consul completion z"
    )
    assert said(home, "bash", "--norc", "-c", script)[:3] == ["cleanup cleanup-wait", "--node", "zsh"]


def test_fish_with_whole_summaries(home: dict[str, str]) -> None:
    lines = ["spegel-consul statu", "spegel-consul peers --no"]
    asked = "; ".join(f"complete -C '{line}'" for line in lines)
    script = f"spegel-consul completion fish | source; {asked}"
    assert said(home, "fish", "--no-config", "-c", script)[:2] == [
        f"status\t{COMMANDS['status'].summary}",
        "--node\tThe sidecar to ask: the address of its metrics port.",
    ]


def test_zsh(home: dict[str, str]) -> None:
    """zsh completes only while somebody types."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(parts.system("zsh"), ["zsh", "-f", "-i"], {**home, "PS1": "ready>"})
    try:
        os.write(
            terminal,
            b"autoload -Uz compinit && compinit -u && source <(spegel-consul completion zsh) && echo lo''aded\n",
        )
        read_until(terminal, "loaded")
        os.write(terminal, b"spegel-consul versi\t")
        read_until(terminal, "version")
        os.write(terminal, b"\n")
        read_until(terminal, "trio")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, expected: str) -> None:
    found, ends = "", time.monotonic() + HANG
    while expected not in found:
        ready, _, _ = select.select([terminal], [], [], max(0.0, ends - time.monotonic()))
        assert ready, f"{expected!r} is not in {found!r}"
        found += os.read(terminal, 4096).decode(errors="replace")
