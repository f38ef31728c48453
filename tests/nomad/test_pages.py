# One machine, and on it from top to bottom what docs/nomad.md, docs/troubleshooting.md and
# jobs/README.md tell people to type.  Addresses and the archive's URL are examples in there; nothing else is changed.

"""The documentation's commands for Nomad do what it says, on a real one."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from lab import documents
from lab.image import MIB, build
from lab.process import Failed, until
from lab.registry import Registry

from spegel_consul import __version__

from .agent import IMAGE, Machine

SERVICES = ("spegel", "spegel-router", "spegel-metrics")
LIMIT = 150
"""Seconds: the longest that one command may take; a job is awaited by Nomad itself."""


def commands(page: str, *starts: str) -> list[str]:
    found = [line.partition("  #")[0].rstrip() for line in documents.lines(page) if line.startswith(starts)]
    assert found, page
    return found


def is_whole(machine: Machine) -> bool:
    """Whether the job's three services are healthy in Consul, each of them once, and somebody leads."""
    consul = machine.node.consul
    for name in SERVICES:
        (found,) = consul.instances(name, passing=False) or [None]
        if found is None or not consul.instances(name) or not found["Service"]["ID"].startswith("_nomad-task-"):
            return False
    return bool(json.loads(consul.kv_get("spegel/leader") or b"{}").get("state") == "held")


def run_job(machine: Machine, command: str, where: Path) -> None:
    """Run it, and see what the README promises of it."""
    said = machine.shell(command, where, LIMIT)
    assert "successful" in said or "complete" in said, said
    machine.node.consul.running().until(lambda: is_whole(machine), timeout=40, what=f"{command}: all is there")
    assert list(machine.running("spegel")) == [machine.node.name]


def test_what_the_pages_tell_people_to_type(machines, top: Path, record_property, tmp_path: Path) -> None:
    jobs = top / "jobs"
    (machine,) = machines(1)
    node, docker = machine.node, machine.docker
    times: list[tuple[str, float]] = []

    def timed(what: str, began: float) -> None:
        times.append((what, time.monotonic() - began))

    # docs/nomad.md: the tutorial, whose job the README has as well
    began = time.monotonic()
    (line,) = commands("README.md", "nomad ")
    (example,) = re.findall(r"registry\.example\.com/\S+:[\d.]+", line)
    name = pushed(machine, example)
    run_job(machine, line.replace(example, name), top)
    assert name in docker.images(), "Docker has pulled it"
    written = docker.certs_d / "_default/hosts.toml"
    assert '[host."http://127.0.0.1:5000"]' in written.read_text()
    app = build(tmp_path / "app", "docker.io/library/app:v1", [MIB])
    docker.docker("load", "-i", app.tar)
    tutorial = (documents.ROOT / "docs/nomad.md").read_text().partition("## The first deploy")[0]
    assert line in tutorial
    for line in documents.lines("docs/nomad.md"):
        if line in tutorial and re.match(r"(curl|consul|dig|spegel-consul pull) ", line):
            until(lambda line=line: _works(machine, line), timeout=20, what=line)
    timed("docs/nomad.md: the tutorial", began)

    # the rest of docs/nomad.md, and a look at the log
    began = time.monotonic()
    where = top
    for line in commands("docs/nomad.md", "nomad ", "cd "):
        if line in tutorial:
            continue
        if line.startswith("cd "):
            where = where / line.split()[1]
        elif " run " in line:
            run_job(machine, line, where)
        else:
            assert "successful" in machine.shell(line, where), line
    (line,) = commands("docs/troubleshooting.md", "nomad ")
    assert "started" in machine.shell(line)
    timed("docs/nomad.md", began)

    # jobs/README.md: for Docker, for containerd, and without an image
    for line in commands("jobs/README.md", "nomad job run"):
        began = time.monotonic()
        if "artifact=" in line:
            line = _archived(machine, line)
        if "native" in line or "cleanup" in line:
            continue  # tests/nomad/test_native.py; below
        run_job(machine, line, jobs)
        timed(f"jobs/README.md: {line.split()[-1]}" + (", containerd" if "containerd.hcl" in line else ""), began)

    # and the removal
    began = time.monotonic()
    assert written.exists()
    clean, *others = commands("jobs/README.md", "nomad job run cleanup", "nomad job stop", "consul kv delete")
    machine.shell(clean, jobs, LIMIT)
    until(lambda: _completed(machine, "spegel-cleanup"), timeout=30, what="the cleanup is complete")
    assert not written.exists()
    for line in others:
        machine.shell(line, jobs, LIMIT)
    until(lambda: not node.consul.instances("spegel", passing=False), timeout=20, what="Consul has forgotten it")
    assert node.consul.kv_get("spegel/leader") is None
    with pytest.raises(Failed, match="404"):
        machine.api("/v1/job/spegel")
    timed("jobs/README.md: removal", began)
    for what, seconds in times:
        record_property("table", ("on a real Nomad", ["", "seconds"], [what, f"{seconds:.0f}"]))


def pushed(machine: Machine, example: str) -> str:
    """Push the image to a registry and forget its name there, for Nomad to pull; the real one for ``example``."""
    registry = Registry(machine.node.port, machine.node.dir / "registry")
    registry.start()
    registry.await_ready()
    name = example.replace("registry.example.com", registry.host)
    docker = machine.docker
    docker.docker("tag", f"{IMAGE}:{__version__}", name)
    docker.docker("push", name, timeout=60)
    docker.docker("rmi", name)
    return name


def _works(machine: Machine, line: str) -> bool:
    try:
        return bool(machine.shell(line).strip())
    except Failed:
        return False


def _completed(machine: Machine, job: str) -> bool:
    states = [each["ClientStatus"] for each in machine.api(f"/v1/job/{job}/allocations")]
    return bool(states) and set(states) == {"complete"}


def _archived(machine: Machine, line: str) -> str:
    """Make the archive as the page says, serve it, and name it in the command."""
    where = machine.node.dir / "archive"
    (command,) = commands("jobs/README.md", "make archive")
    # not in the node's network, which has no way out
    words = [*command.partition(" #")[0].split(), "--silent", f"DIST={where}"]
    done = subprocess.run(words, cwd=documents.ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    digest, name = done.stdout.split()
    archive = where / name
    assert digest == hashlib.sha256(archive.read_bytes()).hexdigest()
    url = f"http://{machine.node.ip}:8080/{archive.name}"
    machine.node.netns.start(
        "files",
        ["/usr/bin/python3", "-m", "http.server", "8080", "--bind", machine.node.ip, "--directory", str(where)],
        log_path=machine.node.dir / "files.log",
    )
    return line.replace("https://files.example.com/spegel-consul.tar.gz", url).replace("sha256:…", f"sha256:{digest}")
