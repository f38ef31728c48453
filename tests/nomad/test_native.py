"""The mirror without Consul, on three clients of a Nomad that has ACLs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from lab import documents
from lab.image import MIB, build
from lab.process import Failed, until

from .agent import Machine, has_locks
from .conftest import await_clients

LEADER = "/v1/var/nomad/jobs/spegel/leader"


def section() -> list[str]:
    """The commands of jobs/README.md that are about it, in their order."""
    text = (documents.ROOT / "jobs/README.md").read_text().partition("## Without Consul")[2].partition("\n## ")[0]
    return [line for line in documents.lines("jobs/README.md") if line in text]


def leader(machine: Machine) -> str:
    """The name of the node that holds the lock, or nothing."""
    try:
        items = machine.api(LEADER)["Items"]
    except Failed:
        return ""
    return str(items["node"]) if items["state"] == "held" else ""


def test_three_clients_find_each_other_share_and_elect(machines, top: Path, record_property, tmp_path: Path) -> None:
    jobs = top / "jobs"
    made = machines(3, consul=False, acl=True)
    first, second, third = made
    until(lambda: _bootstrapped(made), timeout=60, what="ACLs are bootstrapped")
    await_clients(made)
    with pytest.raises(Failed, match="Permission denied"):
        first.shell("NOMAD_TOKEN= nomad job status", jobs)

    policy, run, configure, show, ask = section()
    first.shell(policy, jobs)
    began = time.monotonic()
    first.shell(run, jobs, 240)
    names, ips = {machine.node.name for machine in made}, {machine.node.ip for machine in made}
    # before 1.11 the command waits for the placement only, because system jobs have no deployments
    until(lambda: set(first.running("spegel")) == names, timeout=90, what="it runs on all")
    for service in ("spegel", "spegel-router", "spegel-metrics"):
        until(lambda service=service: _addresses(first, service) == ips, timeout=20, what=f"{service} is listed")
    record("the job on three clients", began, record_property)
    if has_locks():
        until(lambda: leader(first) in names, timeout=60, what="one of them holds the lock")
        assert leader(first) in first.shell(show, jobs)
        assert first.shell(ask).splitlines()[0] == leader(first)
    else:
        for alloc in first.running("spegel").values():
            until(lambda alloc=alloc: _names_the_way(first, alloc["ID"]), timeout=60, what="it says what is missing")
        with pytest.raises(Failed, match="404"):
            first.api(LEADER)
        assert first.shell(ask, status=3).startswith("vacant")
        other = "nomad/jobs/other/leader"
        first.shell(f"nomad var put {other} state=held peer_id=12D3 addrs=/ip4/{first.node.ip}/tcp/1 node=x")
        assert first.shell(f"{ask.partition(' #')[0]} --nomad-variable={other}").startswith("x\n")
    until(lambda: all(_members(machine) == 2 for machine in made), timeout=60, what="all are in one ring")
    first.shell(configure, jobs, 120)

    # what only one has, another pulls, with nothing upstream; the third has not got it either
    for machine in made:
        until((machine.docker.certs_d / "_default/hosts.toml").exists, timeout=60, what="the runtimes are configured")
    app = build(tmp_path / "app", "docker.io/library/app:v1", [8 * MIB])
    second.docker.docker("load", "-i", app.tar)
    path = f"/v2/{app.repository}/manifests/{app.tag}?ns={app.registry}"
    until(lambda: third.node.request(path).status == 200, timeout=30, what="it is found")
    third.docker.pull(app.name)
    assert app.digests <= third.docker.content()

    # one is drained, the holder if there is a lock: then it moves, and comes to another
    drained = next(machine for machine in made if not has_locks() or machine.node.name == leader(first))
    others = names - {drained.node.name}
    began = time.monotonic()
    first.shell(f"nomad node drain -enable -yes -detach {first.clients()[drained.node.name]}")
    if has_locks():
        until(lambda: leader(first) in others, timeout=60, what=f"another than {drained.node.name} holds the lock")
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


def _addresses(machine: Machine, service: str) -> set[str]:
    return {each["Address"] for each in machine.api(f"/v1/service/{service}")}


def _status(machine: Machine) -> Any:
    """What its sidecar says of itself; nothing before it answers, because Nomad lists it earlier."""
    port = next(
        each["Port"] for each in machine.api("/v1/service/spegel-metrics") if each["Address"] == machine.node.ip
    )
    try:
        return json.loads(machine.node.netns.request("GET", machine.node.ip, port, "/api/status").body)
    except OSError:
        return {}


def _names_the_way(machine: Machine, alloc: str) -> bool:
    """Whether a sidecar's log says that this Nomad has no locks, and what to use."""
    return "use --bootstrap-kind=nomad-service" in machine.shell(f"nomad alloc logs -stderr -task spegel {alloc}")


def _members(machine: Machine) -> int:
    return int(_status(machine).get("ring", {}).get("members", 0))


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
