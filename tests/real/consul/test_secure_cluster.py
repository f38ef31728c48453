# Three servers and two more agents that speak TLS with each other and ask for a client's certificate, and that deny
# what no token allows.  Sidecars on three nodes, one of them with a token that may only read.

"""TLS and ACLs with default deny, from end to end: election, registration, tokens that change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.cluster import Cluster, Node
from lab.consul import MASTER_TOKEN, ConsulOptions
from lab.process import Failed, until

from tests.real.consul.certificates import Authority
from tests.real.consul.sidecars import election_events, empty_layout, last_state, log_events

pytestmark = pytest.mark.real

POLICIES = Path(__file__).parents[3] / "consul/policies"
LEADS, READS = (2, 3), 4


class Secure:
    """The cluster, and the token file of each sidecar."""

    def __init__(self, lab: Cluster, authority: Authority, client: tuple[Path, Path]) -> None:
        self.lab = lab
        self.authority, self._client = authority, client
        self.admin = lab[0].consul
        until(self._acls_work, timeout=30, what="the servers have left the legacy mode of ACLs")
        for name in ("spegel", "spegel-reader"):
            self.admin.cli("acl", "policy", "create", "-name", name, "-rules", f"@{POLICIES / name}.hcl")
        self.accessors: dict[int, str] = {}
        layout = empty_layout(lab.dir)
        for index in (*LEADS, READS):
            self.write_token(index, "spegel-reader" if index == READS else "spegel")
            lab[index].start_sidecar(wait=False, env=self.env(index), layout_path=layout, hang_timeout="0s")

    def _acls_work(self) -> bool:
        try:
            return "management" in self.admin.cli("acl", "policy", "list")
        except Failed:
            return False

    def write_token(self, index: int, policy: str) -> None:
        """Give the sidecar of node ``index`` a new token with these rights, as Nomad does it: by another file."""
        made = json.loads(self.admin.cli("acl", "token", "create", "-policy-name", policy, "-format=json"))
        fresh = self.token_file(index).with_suffix(".new")
        fresh.write_text(made["SecretID"])
        fresh.rename(self.token_file(index))
        self.accessors[index] = made["AccessorID"]

    def revoke(self, index: int) -> None:
        self.admin.cli("acl", "token", "delete", "-id", self.accessors[index])

    def token_file(self, index: int) -> Path:
        return self.lab.dir / f"token-{index}"

    def env(self, index: int, **changes: str) -> dict[str, str]:
        certificate, key = self._client
        return {
            "CONSUL_HTTP_ADDR": "https://127.0.0.1:8501",
            "CONSUL_CACERT": str(self.authority.path),
            "CONSUL_CLIENT_CERT": str(certificate),
            "CONSUL_CLIENT_KEY": str(key),
            "CONSUL_HTTP_TOKEN_FILE": str(self.token_file(index)),
            "CONSUL_HTTP_TOKEN": "",
            **changes,
        }

    def leader(self) -> Node:
        until(
            lambda: sum(last_state(self.lab[index]).get("state") == "leader" for index in (*LEADS, READS)) == 1,
            timeout=30,
            what="one sidecar leads",
        )
        return next(node for node in self.lab if node.index in LEADS and last_state(node).get("state") == "leader")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory, "authority")
    agents = authority.sign("agents", "server.dc1.consul", "localhost")
    hcl = f"""
        ca_file = "{authority.path}"
        cert_file = "{agents[0]}"
        key_file = "{agents[1]}"
        verify_incoming = true
        verify_outgoing = true
        verify_server_hostname = true
    """
    with Cluster(5, consul=ConsulOptions(servers=3, acl=True, https=True, hcl=hcl), containerd=None) as lab:
        yield Secure(lab, authority, authority.sign("sidecar", "sidecar"))


def test_all_take_part(secure: Secure) -> None:
    leader = secure.leader()
    reader = secure.lab[READS]
    until(lambda: last_state(reader).get("leader") == leader.name, timeout=20, what="the reader follows")
    for name, count in (("spegel", 2), ("spegel-router", 2), ("spegel-metrics", 2), ("spegel-leader", 1)):
        until(lambda name=name, n=count: len(secure.admin.instances(name)) == n, timeout=20, what=f"{count} {name}")
    for index in LEADS:
        warnings = [event for event in log_events(secure.lab[index]) if event["level"] in ("warning", "error")]
        assert not [event for event in warnings if "hindered" in event["event"]]


def test_the_lead_changes_and_the_reader_says_once_that_it_may_not(secure: Secure) -> None:
    reader = secure.lab[READS]
    for _ in range(2):
        old = secure.leader()
        other = next(secure.lab[index] for index in LEADS if index != old.index)
        old.sidecar.stopped = True
        old.sidecar.process.signal(15)
        until(lambda other=other: last_state(other).get("state") == "leader", timeout=10, what="the other one leads")
        assert old.sidecar.process.wait(10) == 0
        until(
            lambda name=other.name: last_state(reader).get("leader") == name, timeout=10, what="the reader follows it"
        )
        layout = secure.lab.dir / "layout"
        old.start_sidecar(env=secure.env(old.index), layout_path=layout, hang_timeout="0s")
        until(lambda old=old: last_state(old).get("state") == "follower", timeout=10, what="the old one follows")
    for index in LEADS:
        secure.lab[index].sidecar.pause()  # nobody is left who may lead
    until(lambda: last_state(reader).get("state") == "candidate", timeout=60, what="the reader sees that nobody leads")
    until(lambda: refusals(reader), timeout=20, what="the reader says that it may not lead")
    for index in LEADS:
        secure.lab[index].sidecar.resume()
    until(lambda: last_state(reader).get("state") == "follower", timeout=30, what="the reader follows again")
    secure.leader()
    assert refusals(reader) == 1
    assert "leader" not in {event["state"] for event in election_events(reader)}


def refusals(node: Node) -> int:
    return sum(event["event"] == "following only: this token may not lead" for event in log_events(node))


def test_a_revoked_token_and_the_next_one(secure: Secure) -> None:
    leader = secure.leader()
    before = secure.admin.kv_entry("spegel/leader")
    secure.revoke(leader.index)
    until(lambda: last_state(leader).get("state") == "suspended", timeout=15, what="the leader can't renew any more")
    assert last_state(leader)["leader"] == leader.name
    assert any("ACL not found" in str(event.get("problem")) for event in log_events(leader))
    secure.write_token(leader.index, "spegel")
    until(lambda: last_state(leader).get("state") in ("leader", "follower"), timeout=15, what="it takes part again")
    until(lambda: len(secure.admin.instances("spegel-router")) == 2, timeout=15, what="both are registered")
    after = secure.admin.kv_entry("spegel/leader")
    assert before is not None
    assert after is not None
    assert secure.leader().sidecar.process.alive
    assert leader.sidecar.process.alive


def test_the_command_with_the_right_and_the_wrong_authority(secure: Secure, tmp_path: Path) -> None:
    leader = secure.leader()
    told = command(leader, secure.env(leader.index))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[0] == leader.name
    other = Authority(tmp_path, "other").path
    told = command(leader, secure.env(leader.index, CONSUL_CACERT=str(other)))
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert f"not signed by CONSUL_CACERT, {other}" in told.stderr


def command(node: Node, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = node.netns.inside([sys.executable, "-m", "spegel_consul", "leader", *words])
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False)


def test_no_token_reaches_a_log(secure: Secure) -> None:
    for index in (*LEADS, READS):
        log = secure.lab[index].sidecar.log()
        assert secure.token_file(index).read_text() not in log
        assert MASTER_TOKEN not in log
        assert "Traceback" not in log
