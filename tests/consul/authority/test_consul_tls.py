"""Certificates of a Consul in memory, in virtual time: first ones, rotations, outages and the end of a certificate."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.connect_authority import HOURS, ConnectAuthority
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.consul.authority import consul_tls
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.consul.authority.kept_identity import IDENTITY_FILE
from spegel_consul.http.peer_tls import Encryption
from tests.consul.fakeconsul import FakeConsul


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that jumps would overtake a thread. Tests with files use no such clock."""

    async def inline(call: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(consul_tls, "in_thread", inline)


@pytest.fixture
async def consul(nursery: trio.Nursery) -> FakeConsul:
    return FakeConsul(nursery)


@pytest.fixture
def authority() -> ConnectAuthority:
    return ConnectAuthority()


def tls_of(consul: FakeConsul, data_dir: Path | None = None, node: str = "n1") -> ConsulTls:
    began = time.time()
    return ConsulTls(consul.client(node), Encryption.REQUIRE, data_dir, clock=lambda: began + trio.current_time())


def shake_hands(server: ConsulTls, client: ConsulTls) -> bool:
    """Whether both sides believe the other. Raises ssl.SSLError."""
    ours, theirs = server.server(), client.client()
    assert ours is not None
    assert theirs is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = ours.wrap_bio(to_server, to_client, server_side=True)
    two = theirs.wrap_bio(to_client, to_server)
    for _ in range(3):
        for side in (two, one):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert one.version() == two.version() == "TLSv1.3"
    return server.accepts(one.getpeercert()) and client.accepts(two.getpeercert())


async def until(condition: Callable[[], object], limit: float = 120) -> None:
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.05)


async def test_the_first_certificate(
    consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery, tmp_path: Path
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    one, two = tls_of(consul, tmp_path / "new"), tls_of(consul)
    for each in (one, two):
        await nursery.start(each.run)
        assert each.problem is None
    assert shake_hands(one, two)
    assert one.expires == pytest.approx(time.time() + 72 * HOURS, abs=60)
    kept = tmp_path / "new" / IDENTITY_FILE
    await until(kept.exists)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


async def test_a_new_authority_and_a_late_certificate(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    one, two = tls_of(consul), tls_of(consul)
    for each in (one, two):
        await nursery.start(each.run)
    used = one.server(), one.client()
    authority.rotate()
    consul.issue(roots=authority.roots())
    await until(lambda: one.server() is not used[0])
    assert one.client() is not used[1]
    assert shake_hands(one, two)
    await trio.sleep(20)
    before = one.server()
    consul.issue(leaf=authority.leaf())
    await until(lambda: one.server() is not before)
    await until(lambda: two._used() == one._used())
    assert shake_hands(one, two)
    # the old authority is gone from the list: nobody has a certificate of it any more
    authority.forget()
    consul.issue(roots=authority.roots())
    await until(lambda: one._roots is not None and len(one._roots.certificates) == 1)
    await until(lambda: two._used() == one._used())
    assert shake_hands(one, two)
    assert one.problem is None


@pytest.mark.parametrize("shape", [{"intermediate": True}, {"intermediate": True, "company": True}], ids=str)
async def test_certificates_with_intermediates(
    clock: MockClock, consul: FakeConsul, nursery: trio.Nursery, shape: dict[str, bool]
) -> None:
    """As Vault signs them, and the authority of a secondary datacenter."""
    authority = ConnectAuthority(**shape)
    one, two = tls_of(consul), tls_of(consul)
    for each in (one, two):
        consul.issue(leaf=authority.leaf(), roots=authority.roots())
        await nursery.start(each.run)
        authority.rotate()
    await until(lambda: one._used() == two._used())
    assert one.problem is None
    assert shake_hands(one, two)


async def test_an_agent_that_is_killed_and_comes_back(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul)
    await nursery.start(tls.run)
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
    consul.issue(leaf=authority.leaf())
    await until(lambda: tls.server() is not used)


async def test_a_certificate_that_is_not_renewed_is_reported_before_its_end(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls, ahead = tls_of(consul), 0.0
    tls._clock = lambda: time.time() + ahead
    await nursery.start(tls.run)
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
    assert shake_hands(tls, tls)
    ahead = 72 * HOURS
    assert tls.problem.startswith("the certificate for peers has expired: ")
    assert (tls.server(), tls.client()) == (None, None)
    del consul.links["n1"]
    consul.issue(leaf=authority.leaf(ends=144 * HOURS))
    await until(lambda: tls.problem is None)
    assert shake_hands(tls, tls)


async def test_connect_is_switched_off_while_it_is_in_use(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul)
    await nursery.start(tls.run)
    used = tls.server()
    with capture_logs() as said:
        consul.disable_connect()
        await until(lambda: tls.problem)
    assert tls.server() is used
    assert tls.problem is not None
    assert tls.problem.startswith("the certificate for peers is not renewed: Consul has no authority, add connect {")
    assert [line["log_level"] for line in said] == ["warning"]
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    await until(lambda: tls.problem is None)


async def test_connect_is_off(clock: MockClock, consul: FakeConsul, nursery: trio.Nursery) -> None:
    tls = tls_of(consul)
    began = trio.current_time()
    with capture_logs() as said:
        await nursery.start(tls.run)
    assert trio.current_time() - began == pytest.approx(3.0, abs=0.5)
    assert tls.problem is not None
    assert "no certificate for peers: Consul has no authority, add connect { enabled = true }" in tls.problem
    assert (tls.server(), tls.client(), tls.expires) == (None, None, None)
    assert [line["event"] for line in said] == ["certificates hindered"]


async def test_a_token_without_the_right(clock: MockClock, consul: FakeConsul, nursery: trio.Nursery) -> None:
    consul.links["n1"] = "denied"
    tls = tls_of(consul)
    await nursery.start(tls.run)
    assert tls.problem is not None
    assert 'the token needs service "spegel" { policy = "write" }' in tls.problem


def broken(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**document, **changes}


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
    clock: MockClock,
    consul: FakeConsul,
    authority: ConnectAuthority,
    nursery: trio.Nursery,
    changes: dict[str, Any],
    says: str,
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul)
    await nursery.start(tls.run)
    used = tls.server()
    consul.issue(leaf=broken(authority.leaf(), **changes))
    await until(lambda: tls.problem)
    assert tls.problem is not None
    assert says in tls.problem
    assert "PRIVATE KEY" not in tls.problem
    assert tls.server() is used
    consul.issue(leaf=authority.leaf())
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
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery, changes: dict[str, Any]
) -> None:
    # first, and then later
    consul.issue(leaf=authority.leaf(), roots=broken(authority.roots(), **changes))
    tls = tls_of(consul)
    await nursery.start(tls.run)
    assert tls.server() is None
    assert tls.problem is not None
    assert tls.problem.startswith("no certificate for peers: ")
    consul.issue(roots=authority.roots())
    await until(lambda: tls.problem is None)
    used = tls.server()
    consul.issue(roots=broken(authority.roots(), **changes))
    await until(lambda: tls.problem)
    assert tls.server() is used
    assert shake_hands(tls, tls)


@pytest.mark.parametrize("order", [("leaf", "roots"), ("roots", "leaf")])
async def test_answers_in_any_order(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery, order: tuple[str, str]
) -> None:
    made = {"leaf": authority.leaf(), "roots": authority.roots()}
    consul.issue(**{order[0]: made[order[0]]})
    tls = tls_of(consul)
    await nursery.start(tls.run)
    assert tls.server() is None
    assert tls.problem is not None
    consul.issue(**{order[1]: made[order[1]]})
    # the question for the second answer hangs until its time limit, as one to servers that are just starting may
    await until(lambda: tls.server(), limit=200)


async def test_a_restart_while_consul_is_away(
    consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery, tmp_path: Path
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    before = tls_of(consul, tmp_path)
    async with trio.open_nursery() as run:
        await run.start(before.run)
        await until((tmp_path / IDENTITY_FILE).exists)
        run.cancel_scope.cancel()
    consul.links["n1"] = "cut"
    began = trio.current_time()
    after = tls_of(consul, tmp_path)
    await nursery.start(after.run)
    assert trio.current_time() - began < 1
    assert after.problem is None
    assert shake_hands(before, after)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"leaf": {"a": "b"}, "roots": {}}', "\0", "[" * 100_000])
async def test_a_damaged_file_is_replaced(
    consul: FakeConsul,
    authority: ConnectAuthority,
    nursery: trio.Nursery,
    tmp_path: Path,
    content: str,
) -> None:
    file = tmp_path / IDENTITY_FILE
    file.write_text(content)
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul, tmp_path)
    with capture_logs() as said:
        await nursery.start(tls.run)
    assert [line["event"] for line in said] == ["certificate is not kept", "certificate"]
    assert shake_hands(tls, tls)
    await until(lambda: file.read_text() != content)
    assert json.loads(file.read_text())["leaf"]["serial"]


async def test_a_file_that_has_expired_or_belongs_to_nobody_is_not_used(
    consul: FakeConsul,
    authority: ConnectAuthority,
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consul.issue(leaf=authority.leaf(begins=-9 * HOURS, ends=1), roots=authority.roots())
    before = tls_of(consul, tmp_path)
    async with trio.open_nursery() as run:
        await run.start(before.run)
        await until((tmp_path / IDENTITY_FILE).exists)
        run.cancel_scope.cancel()
    consul.links["n1"] = "cut"
    after = tls_of(consul, tmp_path)
    after._clock = lambda: time.time() + 60
    monkeypatch.setattr(consul_tls, "_FIRST", 0.1)
    await nursery.start(after.run)
    assert after.server() is None
    assert after.problem is not None
    assert after.problem.startswith("no certificate for peers: ")


async def test_a_data_directory_that_can_not_be_written(
    consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul, tmp_path / "file" / "below")
    with capture_logs() as said:
        await nursery.start(tls.run)
        await until(lambda: len(said) > 1)
    assert "certificate is not kept" in [line["event"] for line in said]
    assert shake_hands(tls, tls)


async def test_certificates_of_others_are_not_believed(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul)
    await nursery.start(tls.run)
    other = tls_of(consul)
    good = f"spiffe://{authority.trust_domain}/ns/default/dc/dc1/svc/spegel"
    async with trio.open_nursery() as run:
        await run.start(other.run)
        for leaf in (
            authority.leaf("web"),
            authority.leaf(uris=(good, good)),
            authority.leaf(uris=(good, good.replace("spegel", "web"))),
            authority.leaf(uris=(good.replace(authority.trust_domain, "elsewhere.consul"),)),
        ):
            used = other.server()
            consul.issue(leaf=leaf)
            await until(lambda used=used: other.server() is not used)
            assert not tls.accepts(peer_certificate(other))
        run.cancel_scope.cancel()
    stranger = ConnectAuthority(authority.trust_domain)
    foreign = FakeConsul(nursery)
    foreign.issue(leaf=stranger.leaf(), roots=stranger.roots())
    other = tls_of(foreign)
    await nursery.start(other.run)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(other, tls)


def peer_certificate(tls: ConsulTls) -> dict[str, Any]:
    """What a peer sees after a handshake."""
    ours, theirs = tls.server(), tls.client()
    assert ours is not None
    assert theirs is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = ours.wrap_bio(to_server, to_client, server_side=True)
    two = theirs.wrap_bio(to_client, to_server)
    for _ in range(3):
        for side in (two, one):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(two.getpeercert() or {})


async def test_connections_that_stand_outlive_a_rotation(
    clock: MockClock, consul: FakeConsul, authority: ConnectAuthority, nursery: trio.Nursery
) -> None:
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    tls = tls_of(consul)
    await nursery.start(tls.run)
    used = tls.server()
    ends = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()]
    assert used is not None
    assert tls.client() is not None
    one = trio.SSLStream(ends[0], used, server_side=True)
    two = trio.SSLStream(ends[1], tls.client())  # type: ignore[arg-type]
    async with trio.open_nursery() as shaking:
        shaking.start_soon(one.do_handshake)
        shaking.start_soon(two.do_handshake)
    authority.rotate()
    authority.forget()
    consul.issue(leaf=authority.leaf(), roots=authority.roots())
    await until(lambda: tls.server() is not used)
    await one.send_all(b"still here")
    assert await two.receive_some() == b"still here"
    for end in ends:
        await trio.aclose_forcefully(end)
