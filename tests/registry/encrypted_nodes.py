"""Nodes that speak TLS, and who asks them."""

from __future__ import annotations

import random
import ssl
from typing import Any

import httpx
from lab.connect_authority import ConnectAuthority

from spegel_consul.consul.api.client import ConsulClient, Leaf, Roots
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.authority.connect_identity import Identity
from spegel_consul.consul.authority.consul_tls import ConsulTls
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.oci.digest import Digest

CONTENT = random.Random(1)  # each process that shares the tests must name them alike
LAYER = CONTENT.randbytes(3_000_000)
DIGEST = Digest.of(LAYER)
PATH = f"/v2/library/app/blobs/{DIGEST}?ns=docker.io"
PREFER, REQUIRE = Encryption.PREFER, Encryption.REQUIRE
HOLDER, ASKER = "127.0.0.2", "127.0.0.3"
AUTHORITY = ConnectAuthority()


def consul_tls(
    encryption: Encryption, authority: ConnectAuthority = AUTHORITY, *, leaf: dict[str, Any] | None = None
) -> ConsulTls:
    tls = ConsulTls(ConsulClient(ConsulSettings()), encryption, None)
    issued, roots = leaf or authority.leaf(), authority.roots()
    names = ("SerialNumber", "CertPEM", "PrivateKeyPEM", "ValidAfter", "ValidBefore")
    listed = Roots(roots["TrustDomain"], tuple(root["RootCert"] for root in roots["Roots"]))
    tls._use(Identity.make(Leaf(*(issued[name] for name in names)), listed))
    return tls


async def by_runtime(node: Any, path: str = PATH, **headers: str) -> httpx.Response:
    """As the node's own runtime asks."""
    transport = httpx.AsyncHTTPTransport(verify=False, local_address=node.address[0])
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.get(f"http://{node.address[0]}:{node.address[1]}{path}", headers=headers)


async def by_stranger(node: Any, path: str = PATH, tls: ssl.SSLContext | None = None) -> httpx.Response:
    """As another machine asks."""
    scheme = "http" if tls is None else "https"
    async with httpx.AsyncClient(trust_env=False, verify=tls or False) as client:
        return await client.get(f"{scheme}://{node.address[0]}:{node.address[1]}{path}")
