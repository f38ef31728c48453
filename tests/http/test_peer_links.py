"""Faults of certificates: each peer once, and a thousand peers in a few lines."""

from __future__ import annotations

import ssl

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.http import peer_tls
from spegel_consul.http.peer_tls import EXPIRED, NOT_YET_VALID, CertificateFault, PeerLinks, fault_of

HOUR = 3600.0


def refuse(links: PeerLinks, fault: CertificateFault, *hosts: str) -> list[str]:
    """The addresses in the log; "more" for the line that names none."""
    with capture_logs() as log:
        for host in hosts:
            links.refused(host, fault)
    assert all((event["problem"], event["fix"]) == (fault.problem, fault.fix) for event in log)
    return [event.get("address", "more") for event in log]


async def test_each_peer_and_fault_is_logged_once(autojump_clock: MockClock) -> None:
    links = PeerLinks()
    assert refuse(links, EXPIRED, "a", "b", "a", "b") == ["a", "b"]
    assert refuse(links, NOT_YET_VALID, "a", "a") == ["a"]
    for _ in range(100):
        await trio.sleep(HOUR / 2)
        assert refuse(links, EXPIRED, "a") == []
    assert refuse(links, EXPIRED, "b") == ["b"]


async def test_a_thousand_peers_are_a_few_lines(autojump_clock: MockClock) -> None:
    links, hosts = PeerLinks(), [f"10.0.{number // 250}.{number % 250}" for number in range(1000)]
    for _ in range(3):
        refuse(links, EXPIRED, *hosts[:3])
    assert refuse(links, NOT_YET_VALID, *hosts, *hosts) == [*hosts[:5], "more"]
    assert refuse(links, NOT_YET_VALID, *reversed(hosts)) == []
    (expired, early) = links.problems()
    assert expired == f"no TLS with {', '.join(hosts[:3])}: {EXPIRED.problem}; {EXPIRED.fix}"
    assert early.startswith("no TLS with 10.0.3.249, ")
    assert " and 995 more: the peer's certificate is not yet valid; compare the clocks of both nodes" in early
    # after an hour without it, the fault is a new one
    await trio.sleep(HOUR + 1)
    assert links.problems() == []
    assert refuse(links, NOT_YET_VALID, *hosts) == [*hosts[:5], "more"]


async def test_peers_without_end_are_forgotten(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(peer_tls, "_MOST_PEERS", 10)
    links, hosts = PeerLinks(), [str(number) for number in range(100)]
    assert refuse(links, EXPIRED, *hosts, *hosts) == [*hosts[:5], "more"]
    assert links.problems() == [f"no TLS with 90, 91, 92, 93, 94 and 5 more: {EXPIRED.problem}; {EXPIRED.fix}"]


async def test_a_fault_is_over_with_an_encrypted_connection(autojump_clock: MockClock) -> None:
    """An address may be that of many nodes behind a NAT, so a fault that comes and goes is not logged each time."""
    links = PeerLinks()
    links.note("a", True)
    assert refuse(links, EXPIRED, "a") == ["a"]
    assert links.encrypted("a") is None
    links.note("a", False)
    assert len(links.problems()) == 1
    links.note("a", True)
    assert links.problems() == []
    assert refuse(links, EXPIRED, "a") == []
    assert len(links.problems()) == 1


@pytest.mark.parametrize(
    ("reason", "is_fault"),
    [
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", False),
        ("WRONG_VERSION_NUMBER", False),
        (None, False),
    ],
)
def test_which_alerts_are_about_certificates(reason: str | None, is_fault: bool) -> None:
    exc = ssl.SSLError(1, "text")
    exc.reason = reason  # type: ignore[assignment]
    assert (fault_of(exc) is peer_tls.REFUSES_OURS) is is_fault


def test_a_fault_without_advice_of_its_own_has_the_text_of_openssl() -> None:
    exc = ssl.SSLCertVerificationError(1, "text")
    exc.verify_code, exc.verify_message = 26, "unsupported certificate purpose"
    fault = fault_of(exc)
    assert fault is not None
    assert fault.problem == "the peer's certificate is not valid: unsupported certificate purpose"
    assert fault_of(ConnectionResetError()) is None
