"""The search for providers of one request's content, by one lookup after another.

While nothing but the lookup can happen, the request's own task waits for its first provider, so a miss needs no task.

A new rule about the start of a lookup, or about the task that follows it, belongs here. Which providers are asked, and
when another lookup is of use, is decided by :mod:`spegel_consul.registry.mirror.fetch`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack

import structlog
import trio

from spegel_consul.peers import Provider, RingError
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.questions.late_nursery import LateNursery
from spegel_consul.registry.mirror.trace import Trace

log = structlog.get_logger(__name__)


class ProviderSearch:
    """Looks ``key`` up; calls ``found`` with each provider, and ``ended`` when a lookup yields no more.

    The tasks are those of ``nursery``; :meth:`close` ends what has been begun.
    """

    def __init__(
        self,
        peers: MirrorPeers,
        key: str,
        trace: Trace,
        nursery: LateNursery,
        found: Callable[[Provider], None],
        ended: Callable[[], None],
    ) -> None:
        self._peers = peers
        self._key = key
        self._trace = trace
        self._nursery = nursery
        self._found = found
        self._ended = ended
        self._open = ExitStack()
        self._since = trio.current_time()
        self._has_found = False
        self.is_begun = False
        """Whether a lookup has begun since the start, or since :meth:`again`."""
        self.is_over = False
        """Whether that lookup has ended."""
        self.count = 0
        """The number of lookups."""

    def again(self) -> None:
        """Let another lookup begin."""
        self.is_begun = self.is_over = self._has_found = False
        self._since = trio.current_time()

    def close(self) -> None:
        """Abandon the open questions, and let go of ``found`` and ``ended``, whose object may refer to this one."""
        self._open.close()
        self._found = self._ended = _ignore

    async def begin(self) -> None:
        """Begin a lookup, in a task."""
        if (providers := self._begun()) is not None:
            await self._follow(providers)

    async def begin_alone(self, until: float, beside: Callable[[], Awaitable[object]] | None) -> None:
        """Begin a lookup, and wait until the first provider is found, or the time is ``until``.

        Nothing else may be of interest to the caller meanwhile. ``beside`` is called when the questions are sent.
        """
        if (providers := self._begun()) is None:
            return
        if beside is not None:
            await beside()
        with trio.CancelScope(deadline=until):
            async for provider in providers:
                self._resolved(provider)
                break
            else:
                self._end()
                return
        await self._follow(providers)
        if self._has_found:  # an answer names several, to choose from: a turn for the task, and one to be after it
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()

    def _begun(self) -> AsyncIterator[Provider] | None:
        self.is_begun = True
        self.count += 1
        try:
            lookup = self._peers.router.lookup(self._key, count=self._peers.settings.attempts)
            return self._open.enter_context(lookup)
        except RingError as exc:
            log.debug("lookup failed", key=self._key, error=str(exc))
            self._end()
            return None

    async def _follow(self, providers: AsyncIterator[Provider]) -> None:
        (await self._nursery.open()).start_soon(self._go_on, providers)

    async def _go_on(self, providers: AsyncIterator[Provider]) -> None:
        async for provider in providers:
            self._resolved(provider)
        self._end()

    def _resolved(self, provider: Provider) -> None:
        if not self._has_found:
            self._has_found = True
            self._trace.looked_up = time.perf_counter()
            self._peers.on_resolved(trio.current_time() - self._since)
        self._peers.recent.add(self._key, provider)
        self._found(provider)

    def _end(self) -> None:
        self.is_over = True
        self._ended()


def _ignore(*_: object) -> None:
    pass
