# The files of consul/ and the commands of its README, as they are, on one node with default ports and ACLs.

"""What an operator finds in ``consul/`` works."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from lab import documents, parts
from lab.cluster import Cluster, Node
from lab.consul import MASTER_TOKEN, ConsulOptions
from lab.process import Failed, until

from tests.consul.realconsul import ConsulAgent
from tests.real.consul.sidecars import empty_layout, last_state

pytestmark = pytest.mark.real

FOLDER = Path(__file__).parents[3] / "consul"
METHOD = "nomad-workloads"


class Issuer:
    """Signs workload identities as Nomad does."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key(self) -> str:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def identity(self, job: str, **claims: str) -> str:
        now = int(time.time())
        body = {"iss": "nomad", "aud": "consul.io", "iat": now, "nbf": now - 5, "exp": now + 3600}
        body |= {"nomad_namespace": "default", "nomad_job_id": job, "nomad_task": "sidecar", **claims}
        text = f"{_encoded({'alg': 'ES256', 'typ': 'JWT'})}.{_encoded(body)}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(fields: dict[str, object]) -> str:
    return _base64(json.dumps(fields).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def node(issuer: Issuer) -> Iterator[Node]:
    with Cluster(1, consul=ConsulOptions(acl=True), containerd=None) as lab:
        node = lab[0]
        until(lambda: _acls_work(node), timeout=20, what="ACLs are bootstrapped")
        method = {
            "Name": METHOD,
            "Type": "jwt",
            "Config": {
                "JWTValidationPubKeys": [issuer.public_key],
                "JWTSupportedAlgs": ["ES256"],
                "BoundAudiences": ["consul.io"],
                "ClaimMappings": {
                    name: name for name in ("nomad_namespace", "nomad_job_id", "nomad_task", "nomad_service")
                },
            },
        }
        node.consul.put("/v1/acl/auth-method", method)
        node.start_sidecar(layout_path=empty_layout(lab.dir))
        until(lambda: last_state(node).get("state") == "leader", timeout=20, what="it leads")
        until(lambda: node.consul.instances("spegel"), timeout=20, what="its registry is healthy")
        yield node


def _acls_work(node: Node) -> bool:
    try:
        return bool(node.consul.get("/v1/acl/policies"))
    except Failed:
        return False


def shell(node: Node, command: str, where: Path = FOLDER, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of the README, in the folder, or one of another page."""
    programs = [parts.consul().parent, Path(sys.executable).parent, *os.environ["PATH"].split(":")]
    given = {"PATH": ":".join(map(str, programs)), "HOME": "/nonexistent", "CONSUL_HTTP_TOKEN": MASTER_TOKEN}
    argv = node.netns.inside(["bash", "-euo", "pipefail", "-c", command])
    return subprocess.run(
        argv, cwd=where, env={**given, **env}, capture_output=True, text=True, timeout=20, check=False
    )


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_readme(node: Node) -> None:
    ran = {}
    for command in commands():
        done = shell(node, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command
        ran[command] = done.stdout
    assert len(ran) >= 16
    names = [command for command in ran if command.startswith("dig") and not command.endswith("SRV")]
    assert {ran[command] for command in names} == {f"{node.ip}\n"}
    assert json.loads(ran["spegel-consul leader --json"])["node"] == node.name
    assert json.loads(ran["consul kv get spegel/leader"])["node"] == node.name


def test_without_a_token_dns_answers_and_agents_tell_nothing(node: Node) -> None:
    for policy in node.consul.get("/v1/acl/policies"):
        if policy["Name"] in ("spegel-dns", "spegel-reader"):
            node.consul.request("DELETE", f"/v1/acl/policy/{policy['ID']}")

    def run(*lines: str) -> None:
        for line in lines:
            done = shell(node, line, documents.ROOT)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def status(path: str) -> str:
        ask = f"curl -s -m 2 -o /dev/null -w '%{{http_code}}' 'http://127.0.0.1:8500/v1/{path}' || true"
        return shell(node, ask, CONSUL_HTTP_TOKEN="").stdout

    # what the README of earlier versions said, and what the page about upgrades puts in its place
    run(
        "consul acl policy create -name spegel-reader -rules @consul/policies/spegel-reader.hcl",
        "consul acl token update -id anonymous -policy-name spegel-reader",
    )
    assert status("agent/self") == "200"
    run(*(line for line in documents.lines("docs/upgrade.md") if line.startswith("consul acl ")))
    for path in ("agent/self", "agent/metrics", "agent/monitor?loglevel=debug", "kv/spegel/leader"):
        assert status(path) == "403", path
    for name in ("spegel", "spegel-leader"):
        assert shell(node, f"dig @127.0.0.1 -p 8600 +short {name}.service.consul").stdout == f"{node.ip}\n"
    (given,) = [line for line in commands() if "-id anonymous" in line]
    assert given.endswith("-policy-name spegel-dns"), "the README gives the same"


def test_the_services_of_a_host_are_healthy_and_not_doubled(node: Node) -> None:
    assert shell(node, "consul services register services/spegel.hcl").returncode == 0
    node.sidecar.stop()
    node.start_sidecar(layout_path=node.dir.parent / "layout", consul_service="external")
    for name in ("spegel", "spegel-router", "spegel-metrics"):
        until(lambda name=name: node.consul.instances(name), timeout=20, what=f"{name} is healthy")
        ids = [instance["Service"]["ID"] for instance in node.consul.instances(name, passing=False)]
        assert ids == [name]
    until(lambda: last_state(node).get("state") == "leader", timeout=20, what="it leads")
    assert len(node.consul.instances("spegel-leader")) == 1


def test_a_workload_identity_logs_in(node: Node, issuer: Issuer) -> None:
    for _ in range(2):  # it may be run again
        done = shell(node, "acl/binding-rule.sh spegel")
        assert done.returncode == 0, done.stderr
    assert done.stdout == f"tasks of job spegel in namespace default already log in with {METHOD} as role spegel\n"
    assert len(node.consul.get("/v1/acl/binding-rules")) == 1
    missing = shell(node, "acl/binding-rule.sh spegel nowhere")
    assert missing.returncode == 1
    assert "no auth method nowhere: run 'nomad setup consul' first" in missing.stderr

    token = log_in(node, issuer.identity("spegel"))
    assert token["Roles"][0]["Name"] == "spegel"
    told = shell(node, "spegel-consul leader", CONSUL_HTTP_TOKEN=token["SecretID"])
    assert told.returncode == 0, told.stderr
    assert shell(node, "consul kv put other x", CONSUL_HTTP_TOKEN=token["SecretID"]).returncode == 1
    # a sidecar that has nothing else
    node.sidecar.stop()
    layout = node.dir.parent / "layout"
    node.start_sidecar(layout_path=layout, env={"CONSUL_HTTP_TOKEN": token["SecretID"]})
    until(lambda: last_state(node).get("state") == "leader", timeout=20, what="it leads")
    for identity in (
        issuer.identity("other"),
        issuer.identity("spegel", nomad_service="spegel"),
        issuer.identity("spegel", nomad_namespace="other"),  # another team's job of the same name
    ):
        refused(node, identity)


def test_a_rule_for_every_namespace_is_replaced(node: Node, issuer: Issuer) -> None:
    selector = 'value.nomad_job_id=="{}" and "nomad_service" not in value'
    for role, job in (("spegel", "mirror"), ("spegel", "mirror-2"), ("other", "mirror")):
        rule = {"AuthMethod": METHOD, "BindType": "role", "BindName": role, "Selector": selector.format(job)}
        node.consul.put("/v1/acl/binding-rule", rule)
    rules = len(node.consul.get("/v1/acl/binding-rules"))
    done = shell(node, f"acl/binding-rule.sh mirror {METHOD} infra")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"tasks of job mirror in namespace infra log in with {METHOD} as role spegel\n"
        "deleted the rule for jobs mirror of every namespace\n"
    )
    left = node.consul.get("/v1/acl/binding-rules")
    assert len(left) == rules, "one is made, and one deleted"
    assert {each["BindName"] for each in left if each["Selector"] == selector.format("mirror")} == {"other"}
    log_in(node, issuer.identity("mirror", nomad_namespace="infra"))
    refused(node, issuer.identity("mirror"))


@pytest.mark.parametrize("page", ["docs/consul.md", "jobs/README.md"])
def test_the_rights_that_other_pages_tell_to_give(node: Node, issuer: Issuer, page: str) -> None:
    for kind in ("binding-rule", "role", "policy"):
        for each in node.consul.get(f"/v1/acl/{'policies' if kind == 'policy' else kind + 's'}"):
            if each.get("Name", "spegel") == "spegel":
                node.consul.request("DELETE", f"/v1/acl/{kind}/{each['ID']}")
    said = []
    for line in documents.lines(page):
        if line.startswith(("consul acl ", "../consul/acl/")):
            done = shell(node, line, documents.place(page))
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    if page == "jobs/README.md":
        token = log_in(node, issuer.identity("spegel"))["SecretID"]
        refused(node, issuer.identity("spegel", nomad_namespace="other"))
    else:
        (token,) = re.findall(r"SecretID: +(\S+)", said[-1])
    node.sidecar.stop()
    layout = node.dir.parent / "layout"
    node.start_sidecar(layout_path=layout, env={"CONSUL_HTTP_TOKEN": token})
    until(lambda: last_state(node).get("state") == "leader", timeout=20, what="it leads")


def log_in(node: Node, identity: str) -> dict:
    return node.consul.request(
        "POST", "/v1/acl/login", json.dumps({"AuthMethod": METHOD, "BearerToken": identity}).encode()
    )


def refused(node: Node, identity: str) -> None:
    with pytest.raises(Failed, match="403"):
        log_in(node, identity)


def test_the_agents_settings_and_the_watch(tmp_path: Path) -> None:
    told = tmp_path / "told"
    handler = tmp_path / "leader-changed"
    handler.write_text((FOLDER / "watches/leader-changed").read_text().replace("logger -t spegel", f"echo >>{told}"))
    handler.chmod(0o755)
    watch = (FOLDER / "watches/leader.hcl").read_text()
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/leader.hcl").write_text(watch.replace("/etc/consul.d/leader-changed", str(handler)))
    (tmp_path / "conf.d/agent.hcl").write_text((FOLDER / "agent.hcl").read_text())
    (tmp_path / "conf.d/services.hcl").write_text((FOLDER / "services/spegel.hcl").read_text())
    with ConsulAgent(tmp_path, arguments=[f"-config-dir={tmp_path / 'conf.d'}"]) as agent:
        value = json.dumps({"node": "client-7", "peer_id": "p"}, indent=2)
        until(lambda: _puts(agent, value), timeout=10, what="the agent takes writes")
        until(lambda: told.exists() and "leader: client-7" in told.read_text(), timeout=10, what="the watch fired")
        config = json.loads(agent.get("/v1/agent/self"))
        assert config["DebugConfig"]["DNSOnlyPassing"] is True
        assert config["DebugConfig"]["DNSServiceTTL"] == {"spegel": "5s", "spegel-leader": "5s"}
        assert config["DebugConfig"]["HTTPMaxConnsPerClient"] == 500
        assert set(json.loads(agent.get("/v1/agent/services"))) == {"spegel", "spegel-router", "spegel-metrics"}


def _puts(agent: ConsulAgent, value: str) -> bool:
    try:
        agent.command("kv", "put", "spegel/leader", value)
    except AssertionError:
        return False
    return True
