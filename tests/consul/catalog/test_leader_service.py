"""The service that the leader's session is bound to."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from spegel_consul.consul.api.consul_errors import AccessDenied, ConsulError, ConsulUnavailable, NotFound, RateLimited
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.service_definitions import ServiceDefinition


class Agent:
    """A Consul agent, as its client shows it."""

    def __init__(self) -> None:
        self.now = "first"
        self.registered: list[str] = []
        self.reports = 0
        self.deregistered = 0
        self.refusal: ConsulError | None = None

    async def token(self) -> str:
        return self.now

    async def register_service(self, service: object) -> None:
        self.registered.append(self.now)

    async def deregister_service(self, service: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.deregistered += 1

    async def check_pass(self, check: str, *, within: float) -> None:
        self.reports += 1
        if self.refusal is not None:
            raise self.refusal


DEFINITION = ServiceDefinition("spegel-leader-n1", "spegel-leader", "10.0.0.1", 5001, ())


@pytest.fixture
async def agent(nursery: trio.Nursery) -> Agent:
    agent: Any = Agent()
    service = LeaderService(agent, DEFINITION)
    await nursery.start(service.run)
    await service.register()
    await trio.sleep(10)
    return agent


async def test_it_is_registered_again_with_another_token(agent: Agent, autojump_clock: MockClock) -> None:
    agent.now = "second"
    await trio.sleep(60)
    assert agent.registered == ["first", "second"], "the agent synchronises the check with that token"


@pytest.mark.parametrize("error", [AccessDenied("403"), RateLimited("429")])
async def test_a_refusal_is_told_once_and_asked_for_less_often(
    agent: Agent, autojump_clock: MockClock, error: ConsulError
) -> None:
    agent.refusal, before = error, agent.reports
    with capture_logs() as logs:
        await trio.sleep(600)
    assert [each["problem"] for each in logs] == [str(error)]
    assert agent.registered == ["first"]
    assert agent.reports - before < 600
    agent.refusal = None
    await trio.sleep(6)
    before = agent.reports
    await trio.sleep(10)
    assert agent.reports - before >= 19


async def test_a_check_that_the_agent_forgot_is_registered_again(agent: Agent, autojump_clock: MockClock) -> None:
    agent.refusal = NotFound("404")
    await trio.sleep(0.6)
    agent.refusal = None
    await trio.sleep(60)
    assert agent.registered[:2] == ["first", "first"]


async def test_a_registration_does_not_wait_for_an_agent_that_hangs(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    agent: Any = Agent()
    service = LeaderService(agent, DEFINITION)
    agent.deregister_service = lambda _: trio.sleep_forever()
    await nursery.start(service.run)
    await trio.sleep(5.1)
    with trio.fail_after(3):
        await service.register()


@pytest.mark.parametrize("was_leader", [False, True])
async def test_a_deregistration_that_failed_is_made_up_for(
    nursery: trio.Nursery, autojump_clock: MockClock, was_leader: bool
) -> None:
    """A follower whose agent was away must not stay in the catalog as the leader."""
    agent: Any = Agent()
    service = LeaderService(agent, DEFINITION)
    await nursery.start(service.run)
    if was_leader:
        await service.register()
    agent.refusal = ConsulUnavailable("away")
    await service.deregister()
    await trio.sleep(30)
    agent.refusal = None
    await trio.sleep(10)
    assert agent.deregistered == 1
    await trio.sleep(60)
    assert agent.deregistered == 1
    await service.register()
    await trio.sleep(60)
    assert agent.deregistered == 1
    assert agent.reports > 50
