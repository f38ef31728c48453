"""A certificate that a peer refuses is named once in the log, with what to do, by both sides and in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab.certificates import Authority
from lab.connect_authority import HOURS, ConnectAuthority
from structlog.testing import capture_logs

from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.http import peer_tls
from spegel_consul.http.peer_tls import CertificateFault, Encryption
from spegel_consul.http.tls import Tls, TlsFiles
from spegel_consul.peers import PeerError
from tests.registry.encrypted_nodes import ASKER, AUTHORITY, HOLDER, LAYER, PREFER, REQUIRE, by_runtime, consul_tls

STRANGER = ConnectAuthority(AUTHORITY.trust_domain)
FAULTS = {
    "early": (peer_tls.NOT_YET_VALID, AUTHORITY.leaf(begins=HOURS)),
    "expired": (peer_tls.EXPIRED, AUTHORITY.leaf(begins=-9 * HOURS, ends=-1)),
    "authority": (peer_tls.OTHER_AUTHORITY, STRANGER.leaf()),
    "service": (peer_tls.OTHER_SERVICE, AUTHORITY.leaf("web")),
}


def said_by(log: list[Any]) -> list[tuple[str, str, str]]:
    found = [event for event in log if event["event"] == "no TLS with a peer"]
    assert all(event["log_level"] == "warning" for event in found)
    return [(event["address"], event["problem"], event["fix"]) for event in found]


def line(host: str, fault: CertificateFault) -> tuple[str, str, str]:
    return host, fault.problem, fault.fix


def faulty(encryption: Encryption, leaf: dict[str, Any]) -> ConsulTls:
    """A node that takes its own certificate for a good one."""
    tls = consul_tls(encryption, leaf=leaf)
    tls._clock = lambda: 0.0
    return tls


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
@pytest.mark.parametrize("name", FAULTS)
async def test_the_client_names_the_fault_of_a_server(start_node: Any, name: str, encryption: Encryption) -> None:
    fault, leaf = FAULTS[name]
    ours = consul_tls(encryption)
    holder = await start_node(host=HOLDER, tls=faulty(PREFER, leaf))
    asker = await start_node(host=ASKER, tls=ours)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    with capture_logs() as log:
        for _ in range(2):
            asker.mirror.peers.client._dialler._plain_until.clear()
            await by_runtime(asker)
    assert said_by(log) == [line(HOLDER, fault)]
    assert ours.links.problems() == [f"no TLS with {HOLDER}: {fault.problem}; {fault.fix}"]


@pytest.mark.parametrize("encryption", [PREFER, REQUIRE])
@pytest.mark.parametrize("name", FAULTS)
async def test_the_server_names_the_fault_of_a_client(start_node: Any, name: str, encryption: Encryption) -> None:
    fault, leaf = FAULTS[name]
    ours, theirs = consul_tls(encryption), faulty(PREFER, leaf)
    if name == "authority":  # or it would refuse the server first
        assert theirs._identity is not None
        theirs._identity.client.load_verify_locations(cadata=AUTHORITY.roots()["Roots"][0]["RootCert"])
    holder = await start_node(host=HOLDER, tls=ours)
    asker = await start_node(host=ASKER, tls=theirs)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    with capture_logs() as log:
        for _ in range(2):
            asker.mirror.peers.client._dialler._plain_until.clear()
            await by_runtime(asker)
    asker_at = "127.0.0.1"  # from which the client of these tests connects
    assert said_by(log)[0] == line(asker_at, fault)
    # the client gets the alert too, unless the end of the connection is faster; a wrong name is not told by an alert
    assert set(said_by(log)[1:]) <= {line(HOLDER, peer_tls.REFUSES_OURS)}
    assert len(said_by(log)) <= 2
    assert ours.links.problems() == [f"no TLS with {asker_at}: {fault.problem}; {fault.fix}"]


async def test_an_alert_of_the_peer_is_named(start_node: Any) -> None:
    theirs = faulty(REQUIRE, AUTHORITY.leaf(begins=HOURS))
    holder = await start_node(host=HOLDER, tls=consul_tls(REQUIRE))
    asker = await start_node(host=ASKER, tls=theirs)
    connection = await asker.mirror.peers.client._dialler.connect(holder.address, 5.0)
    with capture_logs() as log, pytest.raises(PeerError, match="the peer refuses this node's certificate"):
        await connection.receive(1)
    connection.close()
    assert line(HOLDER, peer_tls.REFUSES_OURS) in said_by(log)


async def test_a_certificate_from_files_that_names_another_address(start_node: Any, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    made = {}
    for name, address in (("holder", "127.0.0.9"), ("asker", ASKER)):
        cert, key = authority.issue(tmp_path, name, address)
        made[name] = Tls(TlsFiles(cert, key, authority.path), PREFER)
    holder = await start_node(host=HOLDER, tls=made["holder"])
    asker = await start_node(host=ASKER, tls=made["asker"])
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    with capture_logs() as log:
        assert (await by_runtime(asker)).content == LAYER
    assert said_by(log) == [line(HOLDER, peer_tls.OTHER_ADDRESS)]
    assert made["asker"].links.encrypted(HOLDER) is False


async def test_a_peer_without_tls_is_no_fault(start_node: Any) -> None:
    ours = consul_tls(PREFER)
    holder = await start_node(host=HOLDER)
    asker = await start_node(host=ASKER, tls=ours)
    holder.store.add_content(LAYER)
    asker.router.knows(holder)
    with capture_logs() as log:
        assert (await by_runtime(asker)).content == LAYER
    assert said_by(log) == []
    assert ours.links.problems() == []
