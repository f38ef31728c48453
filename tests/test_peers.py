"""How addresses are written."""

from __future__ import annotations

import pytest

from spegel_consul.peers import host_port, in_url


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
