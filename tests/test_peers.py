"""How addresses are written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from spegel_consul.peers import (
    MAX_PEER_ID,
    RingError,
    host_port,
    in_url,
    is_mapped,
    peer_id_from_text,
    peer_id_to_text,
    unmapped,
    unmapped_host,
)


@pytest.mark.parametrize(
    ("host", "bracketed"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("fd00::7", "[fd00::7]"),
        ("::ffff:10.0.0.7", "[::ffff:10.0.0.7]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("node-7.example", "node-7.example"),
        ("", ""),
    ],
)
def test_ipv6_stands_in_brackets(host: str, bracketed: str) -> None:
    assert in_url(host) == bracketed
    assert host_port(host, 5000) == f"{bracketed}:5000"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::ffff:a00:7", "10.0.0.7"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("fd00::7", "fd00::7"),
        ("::10.0.0.7", "::a00:7"),  # IPv4-compatible, which nobody uses
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_ipv4_address_in_an_ipv6_one_is_seen(text: str, plain: str) -> None:
    address = ip_address(text)
    assert str(unmapped(address)) == unmapped_host(text) == plain
    assert is_mapped(address) == text.startswith("::ffff:")


@pytest.mark.parametrize("raw", [b"\0" * MAX_PEER_ID, b"\xff" * MAX_PEER_ID])
def test_a_peer_id_that_peers_would_refuse_is_none(raw: bytes) -> None:
    """A peer names its id in a header, and this node names that id to other peers."""
    assert peer_id_from_text(peer_id_to_text(raw)) == raw
    with pytest.raises(RingError):
        peer_id_from_text(peer_id_to_text(raw + raw[:1]))
