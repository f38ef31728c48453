"""``spegel-consul leader`` where the lock is on a Nomad variable."""

from __future__ import annotations

import json

import pytest
import trio
from click.testing import CliRunner, Result
from lab.cli_commands import failure
from lab.process import HANG

from spegel_consul.cli import cli
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join.sources import nomad_api
from spegel_consul.join.sources.nomad_lock import NomadVarBootstrap
from tests.join.fakenomad import FakeNomad

PATH = "nomad/jobs/spegel/leader"
ME = LeaderRecord("12D3", ("/ip4/10.0.0.7/tcp/5001/p2p/12D3",), node="client-7", registry="http://10.0.0.7:5000")


@pytest.fixture
def nomad(monkeypatch: pytest.MonkeyPatch) -> FakeNomad:
    fake = FakeNomad()
    monkeypatch.setattr(nomad_api, "NomadClient", lambda settings: fake.client("n", settings))
    return fake


def elect(nomad: FakeNomad, path: str, *, resigns: bool = False) -> None:
    """Let a node lead by the lock at ``path``; it is killed then, unless it resigns."""

    async def lead() -> None:
        bootstrap = NomadVarBootstrap(nomad.client("client-7"), path, ME)
        async with trio.open_nursery() as nursery:
            await nursery.start(bootstrap.run)
            with trio.fail_after(HANG):
                while nomad.holder(path) is None:
                    await trio.sleep(0.01)
            if not resigns:
                nomad.links["client-7"] = "cut"
            nursery.cancel_scope.cancel()

    trio.run(lead)


def ask(*words: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["leader", *words], env=env)


def test_a_leader_as_text_and_as_json(nomad: FakeNomad) -> None:
    elect(nomad, PATH)
    done = ask("--bootstrap-kind=nomad-var")
    assert (done.exit_code, done.output.splitlines()[:3]) == (
        0,
        ["client-7", "  peer_id   12D3", "  addrs     /ip4/10.0.0.7/tcp/5001/p2p/12D3"],
    )
    told = json.loads(ask("--json", "--bootstrap-kind=nomad-var").output)
    assert (told["state"], told["node"], told["key"], told["registry"]) == ("held", "client-7", PATH, ME.registry)
    assert told["addrs"] == list(ME.addrs)
    assert told["session"] == nomad.variables[PATH]["Items"]["session"]
    assert told["epoch"] == nomad.variables[PATH]["ModifyIndex"]


def test_the_variables_of_the_sidecar(nomad: FakeNomad) -> None:
    elect(nomad, "team/leader")
    found = ask("--json", BOOTSTRAP_KIND="nomad-service,nomad-var,consul", NOMAD_VARIABLE="team/leader")
    assert (found.exit_code, json.loads(found.output)["node"]) == (0, "client-7")


def test_vacant_is_exit_3(nomad: FakeNomad) -> None:
    for path in ("never/written", "resigned"):
        if path == "resigned":
            elect(nomad, path, resigns=True)
        done = ask("--bootstrap-kind=nomad-var", f"--nomad-variable={path}")
        assert (done.exit_code, done.output) == (3, f"vacant: no session holds {path}\n")


def test_a_variable_that_another_program_has_written(nomad: FakeNomad) -> None:
    nomad.write(PATH, {"colour": "blue"})
    done = ask("--bootstrap-kind=nomad-var")
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "the value is not a leader's record")


def test_a_token_without_the_right(nomad: FakeNomad) -> None:
    nomad.links["n"] = 403
    done = ask("--bootstrap-kind=nomad-var")
    assert done.exit_code == 1
    assert f"{PATH}: GET /v1/var/{PATH}: 403" in done.output


@pytest.mark.parametrize(
    ("given", "status", "line"),
    [
        ({}, 1, f"spegel-consul: {PATH}: http://127.0.0.1:1: "),
        ({"NOMAD_ADDR": "nomad:4646"}, 2, "spegel-consul: NOMAD_ADDR: 'nomad:4646'"),
        ({"NOMAD_VARIABLE": "a b"}, 2, "spegel-consul: 'a b' is not the path of a Nomad variable"),
        ({"BOOTSTRAP_KIND": "dns,nomad-service"}, 2, "spegel-consul: --bootstrap-kind: only consul and nomad-var"),
    ],
)
def test_as_a_process_every_failure_is_one_line(given: dict[str, str], status: int, line: str) -> None:
    env = {"BOOTSTRAP_KIND": "nomad-var", "NOMAD_ADDR": "http://127.0.0.1:1", **given}
    code, told = failure("leader", env=env)
    assert code == status
    assert told.startswith(line)
