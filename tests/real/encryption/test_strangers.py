"""Peers and clients that must not be believed, served or waited for, beside those that must, under pulls."""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import thorough
from lab.cluster import Node
from lab.connect_authority import HOURS, ConnectAuthority
from lab.consul import HTTP_PORT
from lab.process import until
from lab.sidecar import METRICS_PORT, REGISTRY_PORT, ROUTER_PORT
from lab.wall_clock import WallClock

from tests.real.encryption.mirrors import (
    RUNTIMES,
    Mirrors,
    Scene,
    await_warning,
    certificates,
    encrypted,
    play,
    warnings,
)

pytestmark = pytest.mark.real

_LYING_AGENT = Path(__file__).with_name("lying_agent.py")
_LIES_AT = f"127.0.0.1:{HTTP_PORT + 50}"

Leaves = list[tuple[dict[str, Any], str]]
"""Certificates, and what a node says that refuses them."""

_ANOTHER, _EXPIRED = "has the certificate of another service", "certificate has expired"
_OLD = {"begins": -9 * HOURS, "ends": -HOURS}


def _plain_peer(mirrors: Mirrors) -> None:
    """It speaks HTTP and nothing else, as a node of Spegel does."""
    plain, able = mirrors.holders
    for node, mode in ((mirrors.puller, "prefer"), (plain, "off"), (able, "prefer")):
        mirrors.start(node, mode)
    mirrors.await_all()
    with mirrors.pulls() as pulls:
        mirrors.leave(able)
        pulls.from_peers("from the plain one alone", 1)
        assert encrypted(mirrors.puller)[plain.name] is False
        mirrors.start(able, "prefer")
        mirrors.await_ring(able)
        mirrors.leave(plain)
        pulls.from_peers("from the other one alone", 1)
        assert encrypted(mirrors.puller)[able.name] is True


def _plain_peer_is_not_asked(mirrors: Mirrors) -> None:
    for node in mirrors.lab:
        mirrors.start(node, "require" if node is mirrors.puller else "off")
    for node in mirrors.lab:
        mirrors.await_ring(node)
    with mirrors.pulls() as pulls:
        pulls.from_upstream("others speak no TLS")


def _another_service_and_an_old_certificate(mirrors: Mirrors) -> None:
    refused(mirrors, lambda authority: [(authority.leaf("web"), _ANOTHER), (authority.leaf(**_OLD), _EXPIRED)])


def _two_names_another_domain_and_another_authority(mirrors: Mirrors) -> None:
    def leaves(authority: ConnectAuthority) -> Leaves:
        good = f"spiffe://{authority.trust_domain}/ns/default/dc/dc1/svc/spegel"
        other_domain = good.replace(authority.trust_domain, "11111111-2222-3333-4444-555555555555.consul")
        foreign = ConnectAuthority(authority.trust_domain).leaf()
        named = [(authority.leaf(uris=uris), _ANOTHER) for uris in ((good, good), (other_domain,))]
        return [*named, (foreign, "unable to get local issuer certificate")]

    refused(mirrors, leaves)


def refused(mirrors: Mirrors, leaves: Callable[[ConnectAuthority], Leaves]) -> None:
    """One holder presents them, to peers that it asks and to those that ask it."""
    liar, other = mirrors.holders
    authority = mirrors.rotate()  # so that the test has the key of Consul's root
    clock = WallClock(mirrors.lab.dir / "clock")
    with lying(liar) as lies:
        for node in (mirrors.puller, other):
            mirrors.start(node, "require")
        mirrors.start(liar, "require", env={**clock.env, "CONSUL_HTTP_ADDR": _LIES_AT})
        mirrors.await_all()
        with mirrors.pulls() as pulls:
            mirrors.leave(other)
            pulls.from_peers("the certificate is right", 1)
            for leaf, says in leaves(authority):
                seen = len(mirrors.puller.sidecar.log())
                clock.set("-5h" if says == _EXPIRED else "+0")
                (lies / "leaf.json").write_text(json.dumps(leaf))
                liar.sidecar.kill9()  # connections that stand would go on
                mirrors.start(liar, "require")
                mirrors.await_ring(liar, 1)
                assert certificates(liar)[-1][0] == leaf["SerialNumber"]
                until(
                    lambda says=says, seen=seen: says in mirrors.puller.sidecar.log()[seen:],
                    timeout=60,
                    what=f"it is refused: {says}",
                )
                assert answer(liar, mirrors.puller, authority, leaf, "/v2/") == b"", says
            pulls.from_upstream("nobody may serve")
            clock.set("+0")
            (lies / "leaf.json").unlink()
            until(lambda: certificates(liar)[-1][0] != leaf["SerialNumber"], timeout=20, what="it has a right one")
            until(lambda: encrypted(mirrors.puller).get(liar.name), timeout=30, what="it is believed")
            pulls.from_peers("the certificate is right again", 1)
            assert b" 200 " in answer(liar, mirrors.puller, authority, authority.leaf(), "/v2/")


def _answers_of_consul_that_can_not_be_used(mirrors: Mirrors) -> None:
    liar, other = mirrors.holders
    with lying(liar) as lies:
        for node in (mirrors.puller, other):
            mirrors.start(node, "require")
        mirrors.start(liar, "require", env={"CONSUL_HTTP_ADDR": _LIES_AT})
        mirrors.await_all()
        mirrors.leave(other)
        roots = liar.consul.get("/v1/agent/connect/ca/roots")
        leaf = liar.consul.get("/v1/agent/connect/ca/leaf/spegel")
        used = certificates(liar)
        with mirrors.pulls() as pulls:
            for name, content, says in (
                ("leaf.json", {**leaf, "CertPEM": "-----BEGIN CERTIFICATE-----\nnone"}, "the certificate from Consul"),
                ("leaf.json", {}, "leaf"),
                ("roots.json", {**roots, "Roots": []}, "Consul lists no authority"),
                ("roots.json", {**roots, "Roots": [{"RootCert": "none"}]}, "Consul's list of authorities"),
            ):
                (lies / name).write_text(json.dumps(content))
                await_warning(liar, says)
                pulls.from_peers(says, 1)
                (lies / name).unlink()
                until(lambda: warnings(liar) == [], timeout=60, what="all is well")
        assert {serial for serial, _ in certificates(liar)} == {serial for serial, _ in used}


def _passwords_and_certificates(mirrors: Mirrors) -> None:
    users = mirrors.lab.dir / "users"
    users.write_text("node:a secret\n")
    users.chmod(0o600)
    shown = "Basic " + base64.b64encode(b"node:a secret").decode()
    mirror, header = f"http://{mirrors.puller.ip}:{REGISTRY_PORT}", {"Authorization": shown}
    for node in mirrors.lab:
        mirrors.start(node, "require", basic_auth_file=users)
    for node in mirrors.lab:
        mirrors.await_ring(node)
    until(lambda: mirrors.puller.request(mirrors.path, headers=header).status == 200, timeout=20, what="it is found")
    with mirrors.pulls() as pulls:
        pulls.from_upstream("without the password")
        mirrors.puller.containerd.write_hosts(
            "_default",
            f'server = "{mirrors.upstream.url}"\n[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n'
            f'  [host."{mirror}".header]\n    authorization = "{shown}"\n',
        )
        pulls.from_peers("with the password", 2)
    assert True in encrypted(mirrors.puller).values()
    for node in mirrors.lab:
        assert "travel in clear text" not in node.sidecar.log()
        assert "a secret" not in node.sidecar.log()
        assert shown.split()[1] not in node.sidecar.log()
    # without TLS the password is of no use, and over TLS it is asked for
    one, two = mirrors.holders
    assert one.request(mirrors.path, to=two, headers=header).status == 403
    leaf, authority = own_leaf(two), roots_of(two)
    assert b" 401 " in secure(one, two, authority, leaf, mirrors.path)
    assert b" 200 " in secure(one, two, authority, leaf, mirrors.path, f"Authorization: {shown}\r\n")


def _strangers(mirrors: Mirrors) -> None:
    mirrors.start_all("require")
    one, two = mirrors.holders
    for node in (mirrors.puller, two):
        refusal = one.request(mirrors.path, to=node)
        assert (refusal.status, b"over TLS only" in refusal.body) == (403, True)
        for path in ("/readyz", "/livez"):
            assert one.request(path, to=node).status == 200
    # Consul's check comes from its own machine
    until(lambda: len(two.consul.instances("spegel")) == 3, timeout=20, what="all pass Consul's checks")
    with mirrors.pulls() as pulls, ExitStack() as stack:
        for start in (b"\x16", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x05GET /", b"\x00", b"GET /v2/"):
            for node in (mirrors.puller, two):
                for _ in range(20):
                    stalled = stack.enter_context(one.netns.connect(node.ip, REGISTRY_PORT))
                    stalled.sendall(start)
        pulls.from_peers("200 connections stall", 2)
        leaf, authority = own_leaf(two), roots_of(two)
        for port in (METRICS_PORT, ROUTER_PORT):
            with pytest.raises((ssl.SSLError, OSError)):
                secure(one, two, authority, leaf, "/v2/", port=port)
        assert b" 200 " in secure(one, two, authority, leaf, "/v2/")
        assert two.request(mirrors.path).status == 200
        pulls.from_peers("TLS came to ports that speak none", 1)


@contextmanager
def lying(node: Node) -> Iterator[Path]:
    """The directory with the lies of an agent at ``_LIES_AT`` on ``node``."""
    lies = node.dir / "lies"
    lies.mkdir()
    argv = [sys.executable, _LYING_AGENT, _LIES_AT, f"127.0.0.1:{HTTP_PORT}", lies]
    process = node.netns.start("lying agent", argv, log_path=lies / "agent.log")
    host, _, port = _LIES_AT.rpartition(":")

    def listens() -> bool:
        try:
            node.netns.connect(host, int(port)).close()
        except OSError:
            return False
        return True

    try:
        process.until(listens, timeout=20, what="it listens")
        yield lies
    finally:
        process.kill9()


def own_leaf(node: Node) -> dict[str, Any]:
    return dict(node.consul.get("/v1/agent/connect/ca/leaf/spegel"))


def roots_of(node: Node) -> str:
    return "\n".join(root["RootCert"] for root in node.consul.get("/v1/agent/connect/ca/roots")["Roots"])


def answer(by: Node, to: Node, authority: ConnectAuthority, leaf: dict[str, Any], path: str) -> bytes:
    """Empty if the connection is refused."""
    try:
        return secure(by, to, authority.roots()["Roots"][-1]["RootCert"], leaf, path)
    except (ssl.SSLError, ConnectionResetError):
        return b""


def secure(
    by: Node, to: Node, authorities: str, leaf: dict[str, Any], path: str, header: str = "", port: int = REGISTRY_PORT
) -> bytes:
    """The head of an answer to a client with the certificate ``leaf``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authorities)
    pair = by.dir / "pair.pem"
    pair.write_text(leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    context.load_cert_chain(pair)
    with by.netns.connect(to.ip, port) as plain, context.wrap_socket(plain) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {to.ip}\r\n{header}Connection: close\r\n\r\n".encode())
        return sock.recv(4096).partition(b"\r\n")[0]


SCENES = [_plain_peer, _passwords_and_certificates, _strangers]
LONG = [
    _another_service_and_an_old_certificate,
    _two_names_another_domain_and_another_authority,
    _plain_peer_is_not_asked,
    _answers_of_consul_that_can_not_be_used,
]


@pytest.mark.parametrize("version", RUNTIMES)
@pytest.mark.parametrize("scene", SCENES + (LONG if thorough.ALL else []), ids=lambda scene: scene.__name__)
def test_no_pull_fails(scene: Scene, version: str, cluster, image, record_property) -> None:
    play(scene, version, cluster, image, record_property)
