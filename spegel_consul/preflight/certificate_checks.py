"""Checks of the certificates for connections between nodes, and of the runtime's way to a node that requires them.

A node without a certificate serves nobody but its own runtime, so preflight asks Consul for one, as the sidecar does.
A new condition of ``--peer-tls`` belongs here.
"""

from __future__ import annotations

import ssl
from functools import partial

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied, ConnectDisabled, ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.authority.connect_identity import Identity, IdentityError
from spegel_consul.consul.authority.consul_tls import ENABLE_CONNECT, RIGHT, SERVICE
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.preflight.interfaces import interface_of

_NAME = "certificate"


async def certificate_of_consul(consul: ConsulSettings) -> tuple[Check | None, ssl.SSLContext | None]:
    """The check, and the context of a client with the certificate. No check if Consul itself is the problem."""
    try:
        async with ConsulClient(consul) as client:
            _, roots = await client.connect_roots()
            _, leaf = await client.connect_leaf(SERVICE)
        identity = await in_thread(partial(Identity.make, leaf, roots))
    except ConnectDisabled:
        return fail(_NAME, "Consul has no authority, so there are no certificates for --peer-tls", ENABLE_CONNECT), None
    except AccessDenied as exc:
        return fail(_NAME, f"Consul refuses a certificate of {SERVICE}: {exc}", RIGHT), None
    except IdentityError as exc:
        return fail(_NAME, str(exc)), None
    except (ConsulError, ValueError):
        return None, None  # the check of Consul reports it
    return ok(_NAME, f"Consul signs certificates of {SERVICE}, this one until {leaf.valid_before}"), identity.client


def runtime_check(address: str, encryption: Encryption | None, *, has_own_address: bool) -> Check | None:
    """Whether the runtime of a node that requires TLS counts as a client of this machine.

    Behind a port mapping the runtime comes from the address of a bridge, as clients of other machines may.
    ``has_own_address``: whether there is a listener of its own for the runtime.
    """
    if encryption is not Encryption.REQUIRE or has_own_address or interface_of(address) is not None:
        return None
    return warn(
        "runtime-addr",
        f"{address} is no address of this network namespace, so the node's own runtime looks like another machine and"
        " is refused in plain text",
        "--runtime-addr :5002   # and publish that port on the host's loopback only",
    )
