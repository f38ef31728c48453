"""``spegel-consul leader`` at a real agent."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from click.testing import CliRunner, Result
from lab.cli_commands import failure
from lab.process import HANG, until

from spegel_consul.cli import cli
from spegel_consul.election.leader_record import LeaderRecord, vacant
from tests.consul.realconsul import ConsulAgent

pytestmark = pytest.mark.real

ME = LeaderRecord("12D3", ("/ip4/10.0.0.7/tcp/5001/p2p/12D3",), node="client-7", registry="http://10.0.0.7:5000")


class Lock:
    """A key at an agent, and a session to lock it with."""

    def __init__(self, agent: ConsulAgent) -> None:
        self.agent = agent
        self.session = ""
        until(self._has_session, timeout=HANG, what="the agent makes a session")

    def _has_session(self) -> bool:
        with suppress(OSError):
            self.session = json.loads(self._put("/v1/session/create", b'{"LockDelay": "0s"}'))["ID"]
        return bool(self.session)

    def take(self, key: str, value: bytes) -> None:
        assert self._put(f"/v1/kv/{key}?acquire={self.session}", value) == b"true"

    def release(self, key: str, value: bytes) -> None:
        assert self._put(f"/v1/kv/{key}?release={self.session}", value) == b"true"

    def _put(self, path: str, body: bytes) -> bytes:
        request = urllib.request.Request(f"http://{self.agent.address}{path}", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=HANG) as answer:
            found: bytes = answer.read().strip()
            return found


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lock]:
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as agent:
        yield Lock(agent)


def ask(lock: Lock, *words: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["leader", *words], env={"CONSUL_HTTP_ADDR": lock.agent.address, **env})


def test_a_leader_as_text_and_as_json(lock: Lock) -> None:
    lock.take("spegel/leader", ME.to_json(session=lock.session, since="2026-11-23T16:34:43Z"))
    done = ask(lock)
    assert done.exit_code == 0
    assert done.output.splitlines()[:3] == [
        "client-7",
        "  peer_id   12D3",
        "  addrs     /ip4/10.0.0.7/tcp/5001/p2p/12D3",
    ]
    assert f"  session   {lock.session}" in done.output
    told = json.loads(ask(lock, "--json").output)
    assert (told["state"], told["node"], told["session"]) == ("held", "client-7", lock.session)
    assert (told["addrs"], told["registry"]) == (list(ME.addrs), ME.registry)
    assert told["epoch"] > 0
    lock.release("spegel/leader", vacant(released_by="client-7", at="now"))
    assert ask(lock).exit_code == 3


def test_vacant_is_exit_3(lock: Lock) -> None:
    for key in ("never/written", "by/hand"):
        if key == "by/hand":
            lock.agent.command("kv", "put", key, ME.to_json(session="old", since="").decode())
        done = ask(lock, "--consul-leader-key", key)
        assert (done.exit_code, done.output) == (3, f"vacant: no session holds {key}\n")
        done = ask(lock, "--json", CONSUL_LEADER_KEY=key)
        assert (done.exit_code, json.loads(done.output)) == (3, {"state": "vacant", "key": key})


@pytest.mark.parametrize("value", [b"junk", b"\x00\xff" * 100, b"9" * (512 << 10), b'{"schema": 99, "who": "x"}'])
def test_a_lock_without_a_readable_record(lock: Lock, value: bytes) -> None:
    lock.take("odd", value)
    done = ask(lock, "--consul-leader-key=odd")
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == "the value is not a leader's record"
    told = json.loads(ask(lock, "--consul-leader-key=odd", "--json").output)
    assert (told["state"], told["session"]) == ("held", lock.session)


def test_a_record_of_a_future_schema_is_read(lock: Lock) -> None:
    lock.take("later", b'{"schema": 9, "peer_id": "p", "addrs": ["/ip4/10.0.0.1/tcp/1"], "quorum": {"of": 3}}')
    assert ask(lock, "--consul-leader-key=later").output.startswith("p\n")


def test_as_a_process_every_failure_is_one_line() -> None:
    for address, status, line in [
        ("127.0.0.1:1", 1, "spegel-consul: spegel/leader: http://127.0.0.1:1: "),
        ("http://", 2, "spegel-consul: CONSUL_HTTP_ADDR: 'http://'"),
    ]:
        code, told = failure("leader", env={"CONSUL_HTTP_ADDR": address})
        assert code == status
        assert told.startswith(line)
