"""A TLS handshake in memory between two nodes."""

from __future__ import annotations

import ssl
from typing import Any

from spegel_consul.consul.authority.consul_tls import ConsulTls


def handshake(server: ConsulTls, client: ConsulTls) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The certificates that the server and the client see. Raises ssl.SSLError."""
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
    return one.getpeercert(), two.getpeercert()


def agree(server: ConsulTls, client: ConsulTls) -> bool:
    """Whether both sides believe the other. Raises ssl.SSLError."""
    by_server, by_client = handshake(server, client)
    return server.accepts(by_server) and client.accepts(by_client)
