"""The commands that ask a sidecar, as processes, against a real ring."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
from lab.process import HANG, ending, with_sigint

pytestmark = pytest.mark.real

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def spegel(ring, *words: str, node: int = 1, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on a node."""
    argv = ring[node].netns.inside([sys.executable, "-m", "spegel_consul", *words])
    environment = {**os.environ, "SPEGEL_NODE": "127.0.0.1:9090", **(env or {})}
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG, env=environment, check=False)


def on_a_terminal(ring, words: Sequence[str], columns: int, node: int = 1, env: dict[str, str] | None = None) -> str:
    """What a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    argv = ring[node].netns.inside([sys.executable, "-m", "spegel_consul", *words])
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **(env or {})}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    output = b""
    with ending(process):
        while select.select([ours], [], [], HANG)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            output += data
        assert process.wait(HANG) == 0, output.decode()
    os.close(ours)
    return output.decode()


def test_status(ring) -> None:
    done = spegel(ring, "status")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "no colours in a pipe"
    assert re.search(r"^node +n1, ready", done.stdout, re.M)
    assert re.search(r"^ring +3 members, 100 % of the catalog's 3", done.stdout, re.M)
    found = json.loads(spegel(ring, "status", "--json").stdout)
    assert found["node"]["name"] == "n1"
    other = json.loads(spegel(ring, "status", "--json", "--node", f"{ring[0].ip}").stdout)
    assert other["node"]["name"] == "n0"


def test_peers(ring) -> None:
    done = spegel(ring, "peers")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["node", "state", "rtt", "keys", "seen", "registry", "version", "place"]
    assert [line.split()[0] for line in lines[1:]] == ["n0", "n1", "n2"]
    assert done.stdout.count("leader") == 1
    assert [peer["node"] for peer in json.loads(spegel(ring, "peers", "--json").stdout)] == ["n0", "n1", "n2"]


def test_lookup(ring) -> None:
    done = spegel(ring, "lookup", ring.image.name)
    assert done.returncode == 0, done.stderr
    assert f"{ring[0].ip}:5000" in done.stdout
    by_digest = json.loads(spegel(ring, "lookup", "--json", ring.image.index).stdout)
    assert [provider["node"] for provider in by_digest["providers"]] == ["n0"]
    nobody = spegel(ring, "lookup", "docker.io/library/nothing:v1")
    assert nobody.returncode == 4
    assert re.fullmatch(r"spegel-consul: no node has docker.io/library/nothing:v1 \(.*\)\n", nobody.stderr)


def test_pull(ring) -> None:
    done = spegel(ring, "pull", ring.image.name)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(ring.image.digests) + 1
    assert all(" n0 " in line for line in lines[:-1])
    assert lines[-1].startswith("whole: ")
    document = json.loads(spegel(ring, "pull", "--json", ring.image.name).stdout)
    assert {piece["digest"] for piece in document["pieces"]} == ring.image.digests
    nobody = spegel(ring, "pull", "docker.io/library/nothing:v1")
    assert nobody.returncode == 4
    assert nobody.stderr == "spegel-consul: no node has docker.io/library/nothing:v1\n"


@pytest.mark.parametrize("columns", [40, 120])
def test_on_a_terminal_nothing_is_wider_than_it(ring, columns: int) -> None:
    for words in (["status"], ["peers"], ["lookup", ring.image.name]):
        output = on_a_terminal(ring, words, columns)
        assert "\x1b[" in output, "colours on a terminal"
        widest = max(ANSI.sub("", output).replace("\r", "").splitlines(), key=len)
        assert len(widest) <= columns, widest
    pulled = ANSI.sub("", on_a_terminal(ring, ["pull", ring.image.name], columns))
    assert "whole" in pulled
    assert max(len(line) for line in re.split(r"[\r\n]+", pulled)) <= columns


def test_no_color(ring) -> None:
    assert "\x1b[3" not in on_a_terminal(ring, ["status"], 100, env={"NO_COLOR": "1"})


def test_events_are_shown_and_followed(ring) -> None:
    done = spegel(ring, "events", "--no-follow")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d\d:\d\d:\d\d info started .*version=", done.stdout, re.M)
    argv = ring[1].netns.inside([sys.executable, "-m", "spegel_consul", "events", "--json"])
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=with_sigint)
    with ending(started) as follower:
        assert follower.stdout is not None
        last = ring.json("/api/events", 1)["last"]
        while json.loads(follower.stdout.readline())["number"] < last:
            pass
        ring[1].sidecar.process.signal(signal.SIGUSR1)
        ring[1].sidecar.process.signal(signal.SIGUSR1)
        while (event := json.loads(follower.stdout.readline()))["event"] != "log level changed":
            pass
        assert event["number"] > last
        follower.send_signal(signal.SIGINT)
        assert follower.wait(HANG) == 130


@pytest.mark.parametrize("command", ["status", "pull x", "events"])
def test_no_sidecar_there_is_one_line_and_exit_3(ring, command: str) -> None:
    done = spegel(ring, *command.split(), "--node", "127.0.0.1:1")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "no sidecar answers at http://127.0.0.1:1" in done.stderr
    other = spegel(ring, *command.split(), "--node", "127.0.0.1:8500")
    assert other.returncode == 3
    assert "is Consul or Nomad: --node names the metrics port" in other.stderr


@pytest.mark.parametrize("node", ["", "a b", "ftp://x"])
def test_a_bad_node_is_one_line_and_exit_2(ring, node: str) -> None:
    done = spegel(ring, "status", f"--node={node}")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "'--node'" in done.stderr


def test_bad_names_are_one_line_and_exit_1(ring) -> None:
    for command in ("lookup", "pull"):
        for name in ("<script>", "x" * 10_000):
            done = spegel(ring, command, name)
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1
            assert len(done.stderr) < 400


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(ring, shell: str) -> None:
    done = spegel(ring, "completion", shell)
    assert done.returncode == 0
    assert "_SPEGEL_CONSUL_COMPLETE" in done.stdout
