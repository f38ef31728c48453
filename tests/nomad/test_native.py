"""The mirror without Consul, on three clients of a Nomad that has ACLs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from lab import documents
from lab.image import MIB, build
from lab.process import Failed, until

from .agent import Machine
from .conftest import await_clients

JOBS = documents.ROOT / "jobs"
LEADER = "/v1/var/nomad/jobs/spegel/leader"


def section() -> list[str]:
    """The commands of jobs/README.md that are about it, in their order."""
    text = (JOBS / "README.md").read_text().partition("## Without Consul")[2].partition("\n## ")[0]
    return [line for line in documents.lines("jobs/README.md") if line in text]


def leader(machine: Machine) -> str:
    """The name of the node that holds the lock, or nothing."""
    try:
        items = machine.api(LEADER)["Items"]
    except Failed:
        return ""
    return str(items["node"]) if items["state"] == "held" else ""


def test_three_clients_elect_share_and_elect_again(machines, record_property, tmp_path: Path) -> None:
    made = machines(3, consul=False, acl=True)
    first, second, third = made
    until(lambda: _bootstrapped(made), timeout=60, what="ACLs are bootstrapped")
    await_clients(made)
    with pytest.raises(Failed, match="Permission denied"):
        first.shell("NOMAD_TOKEN= nomad job status", JOBS)

    policy, run, configure, show = section()
    first.shell(policy, JOBS)
    began = time.monotonic()
    first.shell(run, JOBS, 240)
    names = {machine.node.name for machine in made}
    assert set(first.running("spegel")) == names
    for service in ("spegel", "spegel-router", "spegel-metrics"):
        addresses = {each["Address"] for each in first.api(f"/v1/service/{service}")}
        assert addresses == {machine.node.ip for machine in made}
    record("the job on three clients", began, record_property)
    until(lambda: leader(first) in names, timeout=60, what="one of them holds the lock")
    assert leader(first) in first.shell(show, JOBS)
    first.shell(configure, JOBS, 120)

    # what only one has, another pulls, with nothing upstream; the third has not got it either
    for machine in made:
        until((machine.docker.certs_d / "_default/hosts.toml").exists, timeout=60, what="the runtimes are configured")
    app = build(tmp_path / "app", "docker.io/library/app:v1", [8 * MIB])
    second.docker.docker("load", "-i", app.tar)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: third.node.request(path).status == 200, timeout=30, what="it is found")
    third.docker.pull(app.name)
    assert app.digests <= third.docker.content()

    # the holder is drained: the lock moves, and comes to another
    holder = next(machine for machine in made if machine.node.name == leader(first))
    began = time.monotonic()
    first.shell(f"nomad node drain -enable -yes -detach {first.clients()[holder.node.name]}")
    others = names - {holder.node.name}
    until(lambda: leader(first) in others, timeout=60, what=f"another than {holder.node.name} holds the lock")
    record("another leader after a drain", began, record_property)
    until(lambda: set(first.running("spegel")) == others, timeout=60, what="the drained one has stopped")
    until(lambda: len(first.api("/v1/service/spegel")) == 2, timeout=20, what="Nomad's catalog has forgotten it")
    # not with -purge: the job's rights would be gone before the leader can say that it leads no more
    first.shell("nomad job stop spegel", timeout=120)
    until(lambda: not leader(first), timeout=60, what="the last leader says that it leads no more")
    until(lambda: not first.running("spegel"), timeout=60, what="all have stopped")
    assert exit_codes(first) == [0, 0, 0]


def exit_codes(machine: Machine) -> list[int]:
    """Of all tasks of the job that have ended."""
    events = [
        event for each in machine.api("/v1/job/spegel/allocations") for event in each["TaskStates"]["spegel"]["Events"]
    ]
    return [event["ExitCode"] for event in events if event["Type"] == "Terminated"]


def record(what: str, began: float, record_property) -> None:
    row = [f"without Consul: {what}", f"{time.monotonic() - began:.0f}"]
    record_property("table", ("on a real Nomad", ["", "seconds"], row))


def _bootstrapped(made: list[Machine]) -> bool:
    try:
        token = json.loads(made[0].shell("nomad acl bootstrap -json"))["SecretID"]
    except Failed:
        return False
    for machine in made:
        machine.env["NOMAD_TOKEN"] = token
    return True
