"""Which names in a certificate are those of a sidecar."""

from __future__ import annotations

import pytest
from lab.connect_authority import TRUST_DOMAIN

from spegel_consul.consul.authority.spiffe import names_service

GOOD = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/spegel"


def certificate(*uris: str) -> dict[str, object]:
    return {"subjectAltName": tuple(("URI", uri) for uri in uris)}


@pytest.mark.parametrize(
    "uri",
    [
        GOOD,
        GOOD.replace("dc1", "other-datacenter"),
        GOOD.replace("/ns/", "/ap/team/ns/"),
        GOOD.replace(TRUST_DOMAIN, TRUST_DOMAIN.upper()),
    ],
)
def test_sidecars_of_any_datacenter_and_partition(uri: str) -> None:
    assert names_service(certificate(uri), TRUST_DOMAIN, "spegel")


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (GOOD, GOOD),
        (GOOD, GOOD.replace("spegel", "web")),
        (GOOD.replace("spegel", "web"),),
        (GOOD.replace("spegel", "spegel-router"),),
        (GOOD.replace(TRUST_DOMAIN, "other.consul"),),
        (GOOD.replace("spiffe", "https"),),
        (f"{GOOD}/",),
        (f"{GOOD}/dc/dc2",),
        (GOOD.replace("/svc/spegel", "/svc/web/svc/spegel"),),
        (GOOD.replace("/dc/dc1", "/dc/"),),
        (f"spiffe://{TRUST_DOMAIN}",),
        (f"spiffe://{TRUST_DOMAIN}/svc",),
        (f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/svc/spegel",),
        ("",),
    ],
)
def test_other_names(uris: tuple[str, ...]) -> None:
    assert not names_service(certificate(*uris), TRUST_DOMAIN, "spegel")


def test_no_certificate_and_no_trust_domain() -> None:
    assert not names_service(None, TRUST_DOMAIN, "spegel")
    assert not names_service({"subjectAltName": (("DNS", "spegel"),)}, TRUST_DOMAIN, "spegel")
    assert not names_service(certificate("spiffe:///ns/default/dc/dc1/svc/spegel"), "", "spegel")
