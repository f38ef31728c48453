"""What preflight says of certificates, and of runtimes behind a port mapping."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from lab.certificates import Authority
from lab.connect_authority import ConnectAuthority

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.endpoints.check import Status
from spegel_consul.endpoints.dial_back import Peer
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.tls import Tls, TlsFiles
from spegel_consul.preflight import certificate_checks, node_checks
from spegel_consul.preflight.certificate_checks import certificate_of_consul, runtime_check
from spegel_consul.preflight.node_checks import Subject
from tests.consul.fakeconsul import FakeConsul


@pytest.fixture
async def consul(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> FakeConsul:
    fake = FakeConsul(nursery)
    monkeypatch.setattr(certificate_checks, "ConsulClient", lambda settings: fake.client("n1", settings))
    return fake


async def test_consul_signs(consul: FakeConsul) -> None:
    authority = ConnectAuthority()
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    check, context = await certificate_of_consul(ConsulSettings())
    assert check is not None
    assert check.status is Status.OK
    assert context is not None


async def test_consul_has_no_authority(consul: FakeConsul) -> None:
    check, context = await certificate_of_consul(ConsulSettings())
    assert context is None
    assert check is not None
    assert (check.status, check.fix.split("   #")[0]) == (Status.FAIL, "connect { enabled = true }")


async def test_the_token_has_not_the_right(consul: FakeConsul) -> None:
    consul.links["n1"] = "denied"
    check, _ = await certificate_of_consul(ConsulSettings())
    assert check is not None
    assert (check.status, check.fix) == (Status.FAIL, 'service "spegel" { policy = "write" }')


async def test_a_certificate_that_can_not_be_used(consul: FakeConsul) -> None:
    authority = ConnectAuthority()
    consul.issue(leaf={**authority.leaf(), "CertPEM": "none"}, roots=authority.roots())
    check, _ = await certificate_of_consul(ConsulSettings())
    assert check is not None
    assert check.says.startswith("the certificate from Consul can't be used")


async def test_consul_that_is_away_is_reported_once(consul: FakeConsul) -> None:
    consul.links["n1"] = "cut"
    assert await certificate_of_consul(ConsulSettings()) == (None, None)


async def test_a_node_without_certificate_asks_nobody_to_dial_back(
    consul: FakeConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_checks, "ConsulClient", lambda settings: consul.client("n1", settings))
    for encryption, says in (
        (Encryption.REQUIRE, "not checked: this node has no certificate for its peers"),
        (Encryption.PREFER, "not checked: no other node is known yet"),
    ):
        subject = Subject("10.0.0.7", 5000, consul=ConsulSettings(), peer_tls=encryption)
        checks = await node_checks._certificate_and_dial_back(subject)
        assert [check.name for check in checks] == ["certificate", "dial-back"]
        assert checks[1].says == says


@pytest.mark.parametrize("verify_clients", [False, True])
@pytest.mark.parametrize("encryption", [Encryption.ALL, Encryption.REQUIRE])
async def test_a_peer_that_verifies_clients_is_shown_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify_clients: bool, encryption: Encryption
) -> None:
    authority = Authority.make(tmp_path)
    files = TlsFiles(*authority.issue(tmp_path, "node", "127.0.0.1"), authority.path, verify_clients)
    tls = Tls(files, encryption)
    server = tls.server()
    listener = socket.create_server(("127.0.0.1", 0))
    shown: list[bool] = []

    def serve() -> None:
        with listener, server.wrap_socket(listener.accept()[0], server_side=True) as sock:
            shown.append(sock.getpeercert() is not None)
            sock.recv(4096)
            body = b'{"address": "127.0.0.1", "reached": true}'
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    peer = Peer("127.0.0.1", listener.getsockname()[1])
    every = encryption is Encryption.ALL
    subject = Subject("127.0.0.1", 5000, peer=peer, tls=every, peer_tls=None if every else encryption, certificates=tls)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, serve)
        (check,) = await node_checks._certificate_and_dial_back(subject)
    assert check.status is Status.OK, check
    assert shown == [verify_clients]


def test_a_runtime_behind_a_port_mapping_needs_an_address_of_its_own() -> None:
    elsewhere, here = "192.0.2.7", "127.0.0.1"
    check = runtime_check(elsewhere, Encryption.REQUIRE, has_own_address=False)
    assert check is not None
    assert (check.status, check.fix.split()[0]) == (Status.WARN, "--runtime-addr")
    assert runtime_check(elsewhere, Encryption.REQUIRE, has_own_address=True) is None
    assert runtime_check(elsewhere, Encryption.PREFER, has_own_address=False) is None
    assert runtime_check(elsewhere, None, has_own_address=False) is None
    assert runtime_check(here, Encryption.REQUIRE, has_own_address=False) is None
