"""``PolledBootstrap``: a ``Source`` that is polled.

Most kinds of bootstrap are one question to one source.  The question is repeated with a short back-off while there is
no answer, and every EVERY seconds afterwards, because the ring needs no bootstrap while it is up.  A source that fails,
hangs or names no peers leaves the last answer as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import structlog
import trio

from spegel_consul.backoff import Backoff
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

EVERY = 30.0
"""Seconds between two questions after an answer."""

ASK_WITHIN = 10.0
"""Seconds after which a question is abandoned."""


class SourceError(Exception):
    """The source has no answer; the message is one line for people."""


class Source(Protocol):
    """A source of peers that can be asked once."""

    @property
    def name(self) -> str:
        """The source, for people: ``dns spegel-router.service.consul``."""
        ...

    async def ask(self) -> Sequence[PeerInfo]:
        """The peers of the source. Raises SourceError. May be cancelled at any time."""
        ...


class PolledBootstrap:
    """Asks ``source`` every ``every`` seconds, more often while it has no answer."""

    leader = None

    def __init__(
        self,
        source: Source,
        *,
        every: float = EVERY,
        within: float = ASK_WITHIN,
        rng: random.Random | None = None,
    ) -> None:
        self._source = source
        self._every = every
        self._within = within
        self._rng = rng or random.Random()
        self._observed = ObservedPeers(source.name)

    @property
    def problem(self) -> str | None:
        """The reason why the last question had no answer; None if it had one."""
        return self._observed.problem

    def peers(self) -> Sequence[PeerInfo]:
        """The peers of the last answer that was not empty."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Poll until cancelled; calls ``started()`` at once."""
        backoff = Backoff(0.5, min(15.0, self._every), self._rng)
        task_status.started()
        while True:
            problem = await self._ask()
            self._observed.set_problem(problem)
            if problem is None:
                backoff.reset()
                await trio.sleep(self._every * self._rng.uniform(0.8, 1.2))
            else:
                await trio.sleep(backoff.next())

    async def _ask(self) -> str | None:
        name = self._source.name
        try:
            with trio.fail_after(self._within):
                peers = await self._source.ask()
        except SourceError as why:
            return f"{name}: {why}"
        except trio.TooSlowError:
            return f"{name}: no answer within {self._within:g} s"
        except Exception as why:  # because a source is third-party code that parses untrusted bytes
            log.exception("bootstrap source failed", way=name)
            return f"{name}: {type(why).__name__}: {why}"
        if not peers:
            return f"{name}: names no peers"
        self._observed.set_peers(peers)
        return None
