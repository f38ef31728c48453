"""Who may have this node pull an image."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from web.test_node import Catalog, node

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.web.access import preheat_access
from spegel_consul.web.node_views import Consul, PreheatRules
from tests.web.preheat_runtimes import APP, CLUSTER, HERE, OWN, Runtime, at_once, lines, ready, refused

__all__ = ["at_once"]


MEMBER = "10.0.0.2"


async def test_a_node_that_is_not_told_to_takes_no_part() -> None:
    for path in (OWN, CLUSTER):
        assert await refused(node(), path) == (403, preheat_access.OFF)


@pytest.mark.parametrize("path", [OWN, CLUSTER])
@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (HERE, {"origin": "http://evil.example"}),
        (HERE, {"sec-fetch-site": "cross-site"}),
        (MEMBER, {"origin": "http://evil.example"}),
        (HERE, {"x-forwarded-for": "10.0.0.9"}),
        (MEMBER, {"via": "1.1 proxy"}),
        ("10.0.0.9", {}),
        ("10.0.0.3", {}),
    ],
)
async def test_strangers_are_refused(path: str, client: str, headers: dict[str, str]) -> None:
    runtime = Runtime()
    status, _ = await refused(ready(runtime), path, client=client, headers=headers)
    assert status == 403
    assert not runtime.began.is_set()


async def test_a_peer_has_this_node_pull_and_does_not_begin_a_preheat_of_the_cluster() -> None:
    for address in (MEMBER, f"::ffff:{MEMBER}", "10.0.0.1"):
        async with lines(ready(), client=address) as found:
            assert found[-1]["state"] == "done"
    status, reason = await refused(ready(), CLUSTER, client=MEMBER)
    assert status == 403
    assert "on the machine of the sidecar" in reason


async def test_the_catalog_counts_and_alone_with_the_policy() -> None:
    service = HealthyService("spegel:n9", "spegel", "n9", "10.0.0.9", 5000, meta={"also": "fd00::9"})
    made = ready()
    made.consul = Consul(None, None, Catalog((service,)), None)  # type: ignore[arg-type]
    assert made.preheat is not None
    for catalog_only in (False, True):
        made.preheat = PreheatRules(made.preheat.runtimes, made.preheat.accepts, catalog_only)
        for address in ("10.0.0.9", "fd00::9"):
            async with lines(made, client=address) as found:
                assert found[-1]["state"] == "done"
    assert await refused(made, OWN, client=MEMBER) == (
        403,
        f"{MEMBER} is not the address of a node in Consul's catalog",
    )


async def test_a_password_proves_a_peer_and_its_address_does_not(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("spegel:secret\n")
    (tmp_path / "others").write_text("spegel:guessed\n")
    made, other = ready(), Credentials(tmp_path / "others")
    made.credentials = Credentials(tmp_path / "users")
    status, reason = await refused(made, OWN, client=MEMBER)
    assert (status, "does not prove" in reason) == (403, True)
    good = preheat_access.proof(made.credentials, "me", APP)
    assert "secret" not in str(good)
    async with lines(made, client="10.0.0.9", headers=good) as found:
        assert found[-1]["state"] == "done"
    for wrong, reason in (
        (preheat_access.proof(other, "me", APP), "another password"),
        (preheat_access.proof(made.credentials, "peer2", APP), "another password"),
        (preheat_access.proof(made.credentials, "me", "docker.io/library/other:v1"), "another password"),
        ({preheat_access.HEADER: "x" * 9000}, "does not prove"),
        ({preheat_access.HEADER: "1 " + "0" * 64}, "another password"),
    ):
        status, message = await refused(made, OWN, client=MEMBER, headers=wrong)
        assert status == 403
        assert reason in message


async def test_a_proof_is_of_one_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users").write_text("spegel:secret\n")
    made = ready()
    made.credentials = Credentials(tmp_path / "users")
    good = preheat_access.proof(made.credentials, "me", APP)
    now = time.time()
    monkeypatch.setattr(preheat_access.time, "time", lambda: now + 100)
    status, reason = await refused(made, OWN, client=MEMBER, headers=good)
    assert status == 403
    assert "the clocks" in reason
