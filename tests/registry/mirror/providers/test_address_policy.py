"""Which providers are asked."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.address_policy import any_node, one_of

from ...conftest import NOT_FOUND
from ...image import TAG_PATH, get


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
    """Neither another process of a node that is in it, nor another peer under the address of one that is."""
    known: dict[tuple[str, int], frozenset[str]] = {}
    node = await start_node(permits=one_of(lambda: known))
    stranger = await start_peer(NOT_FOUND)
    node.router.knows(stranger.address)
    host, port = stranger.address

    async def asked() -> int:
        assert (await get(node, TAG_PATH)).status_code == 404
        return len(stranger.requests)

    assert await asked() == 0
    known[host, port + 1] = frozenset({"peer0"})
    assert await asked() == 0
    known[host, port] = frozenset({"peer1"})
    assert await asked() == 0
    known[host, port] = frozenset({"peer1", "peer0"})
    assert await asked() == 1
    known[host, port] = frozenset()
    assert await asked() == 2


async def test_the_password_is_shown_to_registries_of_the_catalog_alone(
    start_node: Any, start_peer: Any, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text("node:secret\n")
    holder = await start_peer(NOT_FOUND)
    node = await start_node(
        credentials=Credentials(users), permits=one_of(lambda: {tuple(holder.address): frozenset({"holder"})})
    )
    thief = await start_peer(NOT_FOUND)
    node.router.providers = [
        Provider("holder", thief.address),
        Provider("thief", thief.address, holder.address),
        Provider("holder", holder.address, thief.address),
    ]
    secret = "Basic " + base64.b64encode(b"node:secret").decode()
    assert (await get(node, TAG_PATH, authorization=secret)).status_code == 404
    assert thief.requests == []
    assert len(holder.requests) == 1
    assert secret.encode() in holder.requests[0]


def test_an_address_that_no_node_has_is_not_asked_whoever_registered_it() -> None:
    permits = one_of(lambda: {("169.254.169.254", 80): (), ("10.0.0.7", 80): ()})
    assert not permits(Provider("peer", ("169.254.169.254", 80)))
    assert permits(Provider("peer", ("10.0.0.7", 80)))
