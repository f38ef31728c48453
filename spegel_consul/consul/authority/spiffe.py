"""The name in a certificate of Consul's authority: ``spiffe://<trust domain>/ns/<ns>/dc/<dc>/svc/<service>``.

A valid chain is not enough, because the authority signs for each service of the mesh. So both sides read the name: one
URI, the trust domain of the authority, and the service. Namespace, datacenter and partition may differ, because
sidecars of several datacenters mirror for each other. All sidecars have one name; it does not say which node a peer is.

A new rule about the names that are believed belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEME = "spiffe://"


def names_service(certificate: Mapping[str, Any] | None, trust_domain: str, service: str) -> bool:
    """Whether a verified certificate is that of ``service`` in ``trust_domain``.

    ``certificate``: as :meth:`ssl.SSLSocket.getpeercert` returns it; None if there is none.
    """
    names = certificate.get("subjectAltName", ()) if certificate is not None else ()
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1 or not uris[0].startswith(_SCHEME):
        return False  # a SPIFFE certificate has exactly one URI (X509-SVID, 2)
    domain, *path = uris[0].removeprefix(_SCHEME).split("/")
    kinds, values = path[::2], path[1::2]
    well_formed = len(kinds) == len(values) == len(set(kinds)) and all(values)
    return (
        bool(trust_domain)
        and domain.lower() == trust_domain.lower()
        and well_formed
        and kinds[-1:] == ["svc"]
        and values[-1] == service
    )
