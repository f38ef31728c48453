"""Certificates of a Consul in memory, in virtual time: first ones, rotations, outages and the end of a certificate."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import pytest
import trio
from lab.connect_authority import HOURS, ConnectAuthority
from structlog.testing import capture_logs
from trio.testing import MockClock

from tests.consul.authority.conftest import Authority, until
from tests.consul.authority.handshake import agree, handshake
from tests.consul.fakeconsul import FakeConsul


async def test_a_new_authority_and_a_late_certificate(autojump_clock: MockClock, authority: Authority) -> None:
    one, two = await authority.start(), await authority.start()
    used = one.server(), one.client()
    authority.ca.rotate()
    authority.consul.issue(roots=authority.ca.roots())
    await until(lambda: one.server() is not used[0])
    assert one.client() is not used[1]
    assert agree(one, two)
    await trio.sleep(20)
    before = one.server()
    authority.consul.issue(leaf=authority.ca.leaf())
    await until(lambda: one.server() is not before)
    await until(lambda: two._used() == one._used())
    assert agree(one, two)
    # the old authority is gone from the list: nobody has a certificate of it any more
    authority.ca.forget()
    authority.consul.issue(roots=authority.ca.roots())
    await until(lambda: one._roots is not None and len(one._roots.certificates) == 1)
    await until(lambda: two._used() == one._used())
    assert agree(one, two)
    assert one.problem is None


@pytest.mark.parametrize("shape", [{"intermediate": True}, {"intermediate": True, "company": True}], ids=str)
async def test_certificates_with_intermediates(
    autojump_clock: MockClock, silent: Authority, shape: dict[str, bool]
) -> None:
    """As Vault signs them, and the authority of a secondary datacenter."""
    silent.ca = ConnectAuthority(**shape)
    nodes = []
    for _ in range(2):
        silent.issue()
        nodes.append(await silent.start())
        silent.ca.rotate()
    one, two = nodes
    await until(lambda: one._used() == two._used())
    assert one.problem is None
    assert agree(one, two)


async def test_an_agent_that_is_killed_and_comes_back(autojump_clock: MockClock, authority: Authority) -> None:
    consul, tls = authority.consul, await authority.start()
    used = tls.server()
    consul.links["n1"] = "cut"
    consul._bump()
    await trio.sleep(300)
    # an outage alone is no news for an operator, because the registration reports it
    assert tls.problem is None
    assert tls.server() is used
    consul.links["n1"] = "no-leader"
    await trio.sleep(30)
    assert tls.problem is None
    del consul.links["n1"]
    consul.issue(leaf=authority.ca.leaf())
    await until(lambda: tls.server() is not used)


async def test_a_certificate_that_is_not_renewed_is_reported_before_its_end(
    autojump_clock: MockClock, authority: Authority
) -> None:
    consul, tls, ahead = authority.consul, authority.make(), 0.0
    tls._clock = lambda: time.time() + ahead
    await authority.nursery.start(tls.run)
    consul.links["n1"] = "cut"
    consul._bump()
    ahead = 65 * HOURS
    await trio.sleep(61)
    assert tls.problem is None
    with capture_logs() as said:
        ahead = 66.5 * HOURS
        await trio.sleep(61)
        ahead = 67.5 * HOURS
        await trio.sleep(61)
    assert tls.problem is not None
    assert "expires within 5 h and is not renewed: http" in tls.problem
    assert [line["problem"].split(" and ")[0] for line in said] == [
        "the certificate for peers expires within 6 h",
        "the certificate for peers expires within 5 h",
    ]
    assert agree(tls, tls)
    ahead = 72 * HOURS
    assert tls.problem.startswith("the certificate for peers has expired: ")
    assert (tls.server(), tls.client()) == (None, None)
    del consul.links["n1"]
    consul.issue(leaf=authority.ca.leaf(ends=144 * HOURS))
    await until(lambda: tls.problem is None)
    assert agree(tls, tls)


async def test_a_clock_that_is_behind_the_certificate_is_a_problem(
    autojump_clock: MockClock, authority: Authority
) -> None:
    """OpenSSL takes its own and its peers' certificates for not yet valid."""
    tls, ahead = authority.make(), -5.5 * HOURS
    tls._clock = lambda: time.time() + ahead
    await authority.nursery.start(tls.run)
    assert tls.problem is not None
    assert tls.problem.startswith("this node's clock is up to 6 h behind")
    ahead = -100.0  # the certificate began a minute ago
    assert tls.problem is None


async def test_connect_is_switched_off_while_it_is_in_use(autojump_clock: MockClock, authority: Authority) -> None:
    tls = await authority.start()
    used = tls.server()
    with capture_logs() as said:
        authority.consul.disable_connect()
        await until(lambda: tls.problem)
    assert tls.server() is used
    assert tls.problem is not None
    assert tls.problem.startswith("the certificate for peers is not renewed: Consul has no authority, add connect {")
    assert [line["log_level"] for line in said] == ["warning"]
    authority.issue()
    await until(lambda: tls.problem is None)


async def test_connect_is_off(autojump_clock: MockClock, silent: Authority) -> None:
    began = trio.current_time()
    with capture_logs() as said:
        tls = await silent.start()
    assert trio.current_time() - began == pytest.approx(3.0, abs=0.5)
    assert tls.problem is not None
    assert "no certificate for peers: Consul has no authority, add connect { enabled = true }" in tls.problem
    assert (tls.server(), tls.client(), tls.expires) == (None, None, None)
    assert [line["event"] for line in said] == ["certificates hindered"]


async def test_a_token_without_the_right(autojump_clock: MockClock, silent: Authority) -> None:
    silent.consul.links["n1"] = "denied"
    tls = await silent.start()
    assert tls.problem is not None
    assert 'the token needs service "spegel" { policy = "write" }' in tls.problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"CertPEM": "no certificate"}, "the certificate from Consul can't be used"),
        ({"CertPEM": "\u00e9"}, "the certificate from Consul can't be used"),
        ({"PrivateKeyPEM": ""}, "the certificate from Consul can't be used"),
        ({"PrivateKeyPEM": ConnectAuthority().leaf()["PrivateKeyPEM"]}, "the certificate from Consul can't be used"),
        ({"ValidBefore": "tomorrow"}, "the certificate from Consul can't be used"),
        ({"ValidBefore": "2026-11-28T13:06:43"}, "has no time zone"),
        ({"CertPEM": None, "ValidBefore": None}, "the certificate from Consul can't be used"),
    ],
)
async def test_a_certificate_that_can_not_be_used(
    autojump_clock: MockClock, authority: Authority, changes: dict[str, Any], says: str
) -> None:
    tls = await authority.start()
    used = tls.server()
    authority.consul.issue(leaf=authority.ca.leaf() | changes)
    await until(lambda: tls.problem)
    assert tls.problem is not None
    assert says in tls.problem
    assert "PRIVATE KEY" not in tls.problem
    assert tls.server() is used
    authority.issue()
    await until(lambda: tls.problem is None)
    assert tls.server() is not used


@pytest.mark.parametrize(
    "changes",
    [
        {"Roots": []},
        {"Roots": None},
        {"Roots": [{"RootCert": "none"}]},
        {"Roots": [{}]},
        {"TrustDomain": None, "Roots": 7},
    ],
    ids=str,
)
async def test_a_list_of_authorities_that_can_not_be_used(
    autojump_clock: MockClock, silent: Authority, changes: dict[str, Any]
) -> None:
    # first, and then later
    silent.consul.issue(leaf=silent.ca.leaf(), roots=silent.ca.roots() | changes)
    tls = await silent.start()
    assert tls.server() is None
    assert tls.problem is not None
    assert tls.problem.startswith("no certificate for peers: ")
    silent.consul.issue(roots=silent.ca.roots())
    await until(lambda: tls.problem is None)
    used = tls.server()
    silent.consul.issue(roots=silent.ca.roots() | changes)
    await until(lambda: tls.problem)
    assert tls.server() is used
    assert agree(tls, tls)


@pytest.mark.parametrize("order", [("leaf", "roots"), ("roots", "leaf")])
async def test_answers_in_any_order(autojump_clock: MockClock, silent: Authority, order: tuple[str, str]) -> None:
    made = {"leaf": silent.ca.leaf(), "roots": silent.ca.roots()}
    silent.consul.issue(**{order[0]: made[order[0]]})
    tls = await silent.start()
    assert tls.server() is None
    assert tls.problem is not None
    silent.consul.issue(**{order[1]: made[order[1]]})
    # the question for the second answer hangs until its time limit, as one to servers that are just starting may
    await until(lambda: tls.server(), limit=200)


async def test_names_of_others_are_not_believed(autojump_clock: MockClock, authority: Authority) -> None:
    """The chains are right, because the authority signs for each service."""
    ca = authority.ca
    good = f"spiffe://{ca.trust_domain}/ns/default/dc/dc1/svc/spegel"
    tls, other = await authority.start(), await authority.start()
    for leaf in (
        ca.leaf("web"),
        ca.leaf(uris=(good, good)),
        ca.leaf(uris=(good, good.replace("spegel", "web"))),
        ca.leaf(uris=(good.replace(ca.trust_domain, "elsewhere.consul"),)),
    ):
        before = other.server()
        authority.consul.issue(leaf=leaf)
        await until(lambda before=before: other.server() is not before)
        for certificate in handshake(other, other):
            assert not tls.accepts(certificate)


async def test_another_authority_is_not_believed(
    autojump_clock: MockClock, authority: Authority, nursery: trio.Nursery
) -> None:
    stranger = Authority(FakeConsul(nursery), nursery, ConnectAuthority(authority.ca.trust_domain))
    stranger.issue()
    ours, theirs = await authority.start(), await stranger.start()
    for server, client in ((ours, theirs), (theirs, ours)):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server, client)


async def test_connections_that_stand_outlive_a_rotation(autojump_clock: MockClock, authority: Authority) -> None:
    tls = await authority.start()
    used = tls.server()
    ends = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()]
    assert used is not None
    assert tls.client() is not None
    one = trio.SSLStream(ends[0], used, server_side=True)
    two = trio.SSLStream(ends[1], tls.client())  # type: ignore[arg-type]
    async with trio.open_nursery() as shaking:
        shaking.start_soon(one.do_handshake)
        shaking.start_soon(two.do_handshake)
    authority.ca.rotate()
    authority.ca.forget()
    authority.issue()
    await until(lambda: tls.server() is not used)
    await one.send_all(b"still here")
    assert await two.receive_some() == b"still here"
    for end in ends:
        await trio.aclose_forcefully(end)
