"""``CatalogWatch``: the healthy instances of a service, kept fresh by a blocking query.

An answer is evidence, and its absence is not: without the right to read, Consul answers 200 with an empty list, and an
agent that has just started knows no instance.  So after a failed query or an empty answer the last list stays.

The index may move without a change of the watched service, and in a busy datacenter it moves often.  So only a changed
list counts as a change, and queries have a least spacing.  It grows with the number of instances, because each of them
asks, and each answer lists them all.

A new rule about the freshness of the list belongs here.  A rule about the use of an instance belongs to ``join``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import structlog
import trio

from spegel_consul.backoff import Backoff, BlockingIndex
from spegel_consul.consul.api.client import ConsulClient, HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.service_definitions import of_cluster
from spegel_consul.log import ProblemReport
from spegel_consul.observable import Observable

log = structlog.get_logger(__name__)

_SPACING = 0.5
_SPACING_EACH = 0.01
"""Least seconds between two queries: at all, and per instance."""


class CatalogWatch:
    """Watches the passing instances of service ``name``; a query blocks for at most ``wait`` seconds.

    With ``leader_key`` only those that may be of the cluster with this leader key.
    """

    def __init__(
        self,
        client: ConsulClient,
        name: str,
        leader_key: str | None = None,
        *,
        wait: float = 60.0,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._client = client
        self._leader_key = leader_key
        self._wait = wait
        self._rng = rng or random.Random()
        self._members = Observable[tuple[HealthyService, ...]](())
        self._others: frozenset[str] = frozenset()  # leader keys of other clusters
        self._report = ProblemReport(log, "catalog hindered", "catalog unhindered", service=name)

    @property
    def members(self) -> tuple[HealthyService, ...]:
        """The instances of the last answer that was not empty, sorted by id; this node is one of them."""
        return self._members.value

    @property
    def problem(self) -> str | None:
        """One line for people that says why :attr:`members` may be stale; None if there is no problem."""
        return self._report.problem

    async def changed(self, since: tuple[HealthyService, ...]) -> tuple[HealthyService, ...]:
        """Return the members as soon as they differ from ``since``."""
        return await self._members.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the list fresh until cancelled; calls ``started()`` at once. Does not raise if Consul is unavailable."""
        index, backoff = BlockingIndex(), Backoff(0.5, 15.0, self._rng)
        task_status.started()
        while True:
            began = trio.current_time()
            try:
                # stale, because any server may answer then, and a list may be seconds old
                answered, members = await self._client.health_service(self.name, index.value, self._wait, stale=True)
            except ConsulError as why:
                index.reset()
                self._report.tell(f"watching {self.name}: {why}")
                await trio.sleep(backoff.next())
                continue
            backoff.reset()
            index.advance(answered)
            self._take(of_cluster(members, self._leader_key), members)
            spread = _SPACING_EACH * max(len(members), len(self.members)) * self._rng.uniform(0.75, 1.25)
            await trio.sleep_until(began + max(_SPACING, spread))

    def _take(self, members: tuple[HealthyService, ...], answer: Sequence[HealthyService]) -> None:
        """Take over the ``members`` of this cluster among the instances of an answer."""
        others = frozenset(each.meta["leader_key"] for each in set(answer).difference(members))
        if others != self._others and others:
            log.info("instances of other clusters left out", service=self.name, leader_keys=sorted(others))
        self._others = others
        if not members:
            # expected, because the first node of a cluster finds no instance before its own has passed its check
            self._report.tell(
                f"no healthy {self.name} in the catalog (or no right to read it)"
                if not others
                else f"no healthy {self.name} with this node's leader key in the catalog",
                expected=None if self.members else "catalog empty",
            )
            return
        self._report.tell(None)
        self._members.set(tuple(sorted(members, key=lambda member: (member.id, member.node))))
