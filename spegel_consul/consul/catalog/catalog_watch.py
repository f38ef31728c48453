# Who is in?  A blocking query on one service of the catalog.
#
# An answer is evidence, its absence is not: without the right to read, Consul answers 200 with an empty list, and
# an agent that has just started knows nobody.  So a failed query and an empty answer both keep what was known.
# The index may move without a change of what is watched, and on a busy datacenter it moves often: only a changed
# list counts, and answers that come at once are spaced out: the further the more instances there are, because each of
# them asks, and each answer has all of them.

"""``CatalogWatch``: the healthy instances of a service, kept fresh."""

from __future__ import annotations

import random

import structlog
import trio

from spegel_consul.consul.api.backoff import Backoff, BlockingIndex
from spegel_consul.consul.api.client import ConsulClient, HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.log import ProblemReport
from spegel_consul.observable import Observable

log = structlog.get_logger(__name__)

_SPACING = 0.5
_SPACING_EACH = 0.01
"""Seconds between two queries, at least and for each instance."""


class CatalogWatch:
    """Watches the passing instances of service ``name``; ``wait`` is how long a query may block, in seconds."""

    def __init__(
        self, client: ConsulClient, name: str, *, wait: float = 60.0, rng: random.Random | None = None
    ) -> None:
        self.name = name
        self._client = client
        self._wait = wait
        self._rng = rng or random.Random()
        self._members = Observable[tuple[HealthyService, ...]](())
        self._report = ProblemReport(log, "catalog hindered", "catalog unhindered", service=name)

    @property
    def members(self) -> tuple[HealthyService, ...]:
        """The instances of the last answer that had any, sorted by id; this node among them."""
        return self._members.value

    @property
    def problem(self) -> str | None:
        """Why :attr:`members` may be stale, in one line for people; None when all is well."""
        return self._report.problem

    async def changed(self, since: tuple[HealthyService, ...]) -> tuple[HealthyService, ...]:
        """The members, once they are not ``since``."""
        return await self._members.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the answer fresh until cancelled; ``started()`` at once. Never fails because Consul is away."""
        index, backoff = BlockingIndex(), Backoff(0.5, 15.0, self._rng)
        task_status.started()
        while True:
            began = trio.current_time()
            try:
                # any server may answer: a list that is seconds old costs the leader nothing
                answered, members = await self._client.health_service(self.name, index.value, self._wait, stale=True)
            except ConsulError as why:
                index.reset()
                self._report.tell(f"watching {self.name}: {why}")
                await trio.sleep(backoff.next())
                continue
            backoff.reset()
            index.advance(answered)
            self._take(members)
            spread = _SPACING_EACH * len(self.members) * self._rng.uniform(0.75, 1.25)
            await trio.sleep_until(began + max(_SPACING, spread))

    def _take(self, members: tuple[HealthyService, ...]) -> None:
        if not members:
            # the first node of a cluster sees nobody before its own registration has passed its check
            self._report.tell(
                f"no healthy {self.name} in the catalog (or no right to read it)",
                expected=None if self.members else "catalog empty",
            )
            return
        self._report.tell(None)
        self._members.set(tuple(sorted(members, key=lambda member: (member.id, member.node))))
