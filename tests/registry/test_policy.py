"""Which providers are asked."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from spegel_consul.registry.policy import any_node, one_of
from spegel_consul.ring import Provider


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.7", True),
        ("127.0.0.1", True),
        ("fd00::7", True),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:10.0.0.7", False),
        ("::ffff:127.0.0.1", False),
        ("fd00:ec2::254", False),
        ("100.100.100.200", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("metadata.internal", False),
    ],
)
def test_addresses_that_a_node_could_have(host: str, expected: bool) -> None:
    assert any_node(Provider("peer", (host, 5000))) is expected


async def test_who_is_not_in_the_catalog_is_not_asked(start_node: Any, start_peer: Any) -> None:
    known: set[str] = set()
    node = await start_node(permits=one_of(lambda: known))
    stranger = await start_peer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    node.router.knows(stranger.address)
    path = "/v2/library/app/manifests/v1?ns=docker.io"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(node.url + path)).status_code == 404
        assert stranger.requests == []
        known.add(stranger.address[0])
        assert (await client.get(node.url + path)).status_code == 404
    assert len(stranger.requests) == 1
