"""``NodePlace``: the place of this node, as Consul knows it.

The datacenter is that of the agent. The zone and the rack are metadata of the agent's node, under the names that
operators use: ``zone`` or ``az``, and ``rack``. Names that the settings give go before those of Consul. The agent is
asked before the ring is joined, for a second at most, because other nodes ask near ones first from the beginning. After
that it is asked again and again, because Consul may be away, and an agent may get other metadata when it restarts.

A new name of metadata belongs here; the meaning of a place belongs to :mod:`spegel_consul.places`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import structlog
import trio

from spegel_consul.backoff import Backoff
from spegel_consul.consul.api.client import AgentNode, ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied, ConsulError
from spegel_consul.log import ProblemReport
from spegel_consul.places import Here, Place, known_name

log = structlog.get_logger(__name__)

AT_START = 1.0
"""Seconds by which the question may delay a start."""

AGAIN = 300.0
"""Seconds between two questions to an agent that has answered, or has refused."""

_ZONES, _RACKS = ("zone", "az"), ("rack",)


def place_of(agent: AgentNode) -> Place:
    """The place of the agent's node. Metadata that is no name of a place is left out."""
    return Place(known_name(agent.datacenter), _first(agent.meta, _ZONES), _first(agent.meta, _RACKS))


def _first(meta: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next(filter(None, (known_name(meta.get(key)) for key in keys)), "")


class NodePlace:
    """Keeps ``here`` at ``given``, with the names that it lacks from Consul. ``changed``: called with a new place.

    Does not raise if the agent is unavailable or refuses: see :attr:`problem`.
    """

    def __init__(
        self, client: ConsulClient, here: Here, given: Place, changed: Callable[[Place], None] = lambda place: None
    ) -> None:
        self._client = client
        self._here = here
        self._given = given
        self.changed = changed
        self.node = ""
        """The name of the agent's node; "" before the first answer."""
        self._report = ProblemReport(log, "place hindered", "place unhindered")

    @property
    def problem(self) -> str | None:
        """One line for people that says why the place is unknown; None if there is no problem."""
        return self._report.problem

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled; calls ``started()`` after the first question, or a second."""
        backoff = Backoff(1.0, 60.0, random.Random())
        with trio.move_on_after(AT_START) as first:
            pause = await self._ask(backoff)
        if first.cancelled_caught:
            pause = backoff.next()
        task_status.started()
        while True:
            await trio.sleep(pause)
            pause = await self._ask(backoff)

    async def _ask(self, backoff: Backoff) -> float:
        """Ask once. Return the seconds until the next question."""
        try:
            agent = await self._client.agent_self()
        except AccessDenied as why:
            # no problem of every node, because a cluster may need no places
            hint = "its token needs agent_prefix read, or give --zone"
            self._report.tell(f"reading the place of this node: {why}: {hint}", expected="place unknown")
            return AGAIN
        except ConsulError as why:
            self._report.tell(f"reading the place of this node: {why}", expected="place unknown")
            return backoff.next()
        self._report.tell(None)
        backoff.reset()
        self.node = agent.name
        place = self._given.or_else(place_of(agent))
        if place != self._here.place:
            self._here.place = place
            log.info("place", place=str(place))
            self.changed(place)
        return AGAIN
