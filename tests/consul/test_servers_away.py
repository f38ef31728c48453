"""The log while Consul's servers are away, in virtual time: the agent tries another one at each request."""

from __future__ import annotations

import itertools
from collections import Counter

import httpx
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import LeaderRecord

REFUSED = "rpc error making call: dial tcp <nil>->10.0.0.{server}:8300: connect: connection refused"
SLOW = "rpc error making call: read tcp 10.0.0.9:{port}->10.0.0.{server}:8300: i/o timeout"


@pytest.mark.parametrize("texts", [(REFUSED,), (REFUSED, SLOW)], ids=["one way", "two ways"])
async def test_each_kind_of_failure_is_logged_once(
    autojump_clock: trio.testing.MockClock, texts: tuple[str, ...]
) -> None:
    attempts = itertools.count()

    async def fail(request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        attempt = next(attempts)
        text = texts[attempt % len(texts)].format(server=2 + attempt % 3, port=40000 + attempt)
        return httpx.Response(500, text=text)

    client = ConsulClient(ConsulSettings(), transport=httpx.MockTransport(fail))
    candidate = Candidate(ConsulLock(client, ElectionSettings()), LeaderRecord("p", (), node="n1"))
    watch = CatalogWatch(client, "spegel-router")
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(candidate.run)
            await nursery.start(watch.run)
            await trio.sleep(600)
            assert candidate.problem is not None
            assert watch.problem is not None
            nursery.cancel_scope.cancel()
    assert next(attempts) > 60
    warnings = Counter(line["event"] for line in logs if line["log_level"] == "warning")
    assert warnings == {"election hindered": len(texts), "catalog hindered": len(texts)}
