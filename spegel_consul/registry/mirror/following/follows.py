"""The groups that this node is at work on, each with a task that reports to the group's keeper.

A request that needs a group begins its claim, or finds it, and waits for a verdict. The task of the claim sends the
reports that :mod:`spegel_consul.registry.mirror.following.group_claim` asks for, and ends with the work on the group.
An error of one report is the failure of that report and of nothing else.

A new rule about the number of claims, or about what a report is made from, belongs here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.path import ContentRequest
from spegel_consul.peers import Provider, RingError, host_port
from spegel_consul.registry.mirror.following.group_claim import CLAIM_WITHIN, GroupClaim, Work
from spegel_consul.registry.mirror.following.group_history import COMPLETE, IDLE
from spegel_consul.registry.mirror.following.group_work import GroupWork
from spegel_consul.registry.mirror.groups import Groups
from spegel_consul.ring import Router
from spegel_consul.ring.dht.claim_reports import What, Why
from spegel_consul.store import Store

log = structlog.get_logger(__name__)

MOST = 256
"""Groups at work at the same time; requests of further groups go upstream as if there were no keepers."""

SLOW_FOR = 1800.0
"""Seconds for which this node takes over from no slow claimer, after a verdict that the registry is slow for all."""

_REGISTRIES = 256  # that are remembered as slow

_REPORT_WITHIN = 2 * CLAIM_WITHIN + 1.0  # seconds; a router asks two keepers at most

Behind = Callable[[float], tuple[str, ...]]
"""Returns the peer ids of this node's followers that lag, at the time ``now``."""


def nobody_is_behind(now: float) -> tuple[str, ...]:
    """The lagging followers of a node that has none."""
    return ()


class Follows:
    """The claims of this node. They are made while :meth:`run` runs; before and after, no request follows.

    ``near_only``: whether no source of another zone is followed.
    """

    def __init__(
        self,
        router: Router,
        store: Store,
        metrics: Metrics,
        may_ask: Callable[[Provider], bool],
        behind: Behind = nobody_is_behind,
        *,
        near_only: bool = False,
    ) -> None:
        self._near_only = near_only
        self._active: dict[str, ActiveGroup] = {}
        self.groups = Groups(store, self._active)
        self._router = router
        self._store = store
        self._metrics = metrics
        self._may_ask = may_ask
        self._behind = behind
        self._nursery: trio.Nursery | None = None
        self._slow_until: BoundedDict[str, float] = BoundedDict(_REGISTRIES)

    @property
    def me(self) -> str:
        """The peer id of this node."""
        return self._router.me.id or ""

    @property
    def active(self) -> tuple[ActiveGroup, ...]:
        """The groups that this node is at work on."""
        return tuple(self._active.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def begin(self, request: ContentRequest) -> ActiveGroup | None:
        """Return the group of ``request``, which names a digest, at work; None if this node is at too many."""
        if self._nursery is None or request.reference.digest is None:
            return None
        group = await self.groups.of(request)
        found = self._active.get(group)
        if found is None:
            if self._nursery is None or len(self._active) >= MOST:
                return None
            found = self._active[group] = ActiveGroup(self, group)
            self._nursery.start_soon(self._keep, found)
        found.claim.history.name(request.reference.registry, request.reference.repository)
        found.claim.ask(request.reference.digest)
        return found

    async def may_claim_late(self, request: ContentRequest) -> bool:
        """Whether a claim of ``request``, which names a digest, can say nothing of this node.

        The node is not at work on the group, and its runtime has no download. So there may be no need for the claim,
        see :meth:`is_vacant`.
        """
        group = await self.groups.of(request)
        return group not in self._active and await self._store.at_work() is None

    def claims_late(self, request: ContentRequest) -> bool:
        """Whether :meth:`may_claim_late` is certain without a look at the disk."""
        group = self.groups.at_once(request)
        return group is not None and group not in self._active and self._store.is_idle()

    def is_vacant(self, request: ContentRequest) -> bool:
        """Whether no node is at work on the group of ``request``, as the lookup has told if the group has its key."""
        digest = request.reference.digest
        return digest is not None and self.groups.known(digest) == digest and self._router.is_vacant(digest)

    async def _keep(self, active: ActiveGroup) -> None:
        try:
            await active.run()
        except Exception:  # all groups share the nursery, so an error of one must not end the others
            log.exception("the reports of a group ended", group=active.claim.group)
        finally:
            del self._active[active.claim.group]

    def size(self, group: str) -> int | None:
        """Return the number of bytes of the group; None if its manifest is not known."""
        return sum(self.groups.contents(group).values()) or None

    def verdict(self, digest: Digest) -> tuple[What | None, Provider | None]:
        """Return the last verdict about the group of ``digest`` and the source to follow, as far as they are known."""
        active = self._active.get(self.groups.known(digest))
        return (None, None) if active is None else (active.claim.what, active.claim.source)

    def is_following(self, digest: Digest) -> bool:
        """Whether a source sends this node content of the group of ``digest``."""
        active = self._active.get(self.groups.known(digest))
        return active is not None and active.claim.is_following

    def usable(self, provider: Provider) -> bool:
        """Whether the provider may be followed: another node, which may be asked."""
        return provider.peer_id != self.me and self._may_ask(provider)

    def count_failure(self, why: Why) -> None:
        self._metrics.follow_failures.labels(why.name.lower()).inc()

    def count_takeover(self) -> None:
        self._metrics.takeovers.inc()

    def count_received(self, count: int) -> None:
        self._metrics.followed_bytes.inc(count)

    async def look(self, active: ActiveGroup) -> Work:
        """Return what this node has of the group."""
        return await active.work.look(self.groups.contents(active.claim.group), active.claim.asked)

    async def report(self, active: ActiveGroup) -> None:
        """Send the report that is due, and give the verdict to the claim."""
        claim, before = active.claim, active.claim.what
        work = await self.look(active)
        while True:
            report = claim.report(work, self._behind(trio.current_time()))
            declines = trio.current_time() < self._slow_until.get(claim.history.registry, -math.inf)
            report = replace(report, near_only=self._near_only, declines=declines)
            verdict, began = None, time.perf_counter()
            with trio.move_on_after(_REPORT_WITHIN):
                try:
                    verdict = await self._router.claim(claim.group, report)
                except RingError as exc:
                    log.debug("no keeper answers", group=claim.group, error=str(exc))
                except Exception:  # a report without an answer, so that waiting requests go upstream at once
                    log.exception("report failed", group=claim.group)
            if verdict is None:
                self._metrics.claims.labels("none").inc()
                claim.unanswered()
                return
            self._metrics.claim_seconds.observe(time.perf_counter() - began)
            self._metrics.claims.labels(verdict.what.name.lower()).inc()
            if verdict.slow_upstream and claim.history.registry:  # requests without a name may be for any registries
                self._slow_until[claim.history.registry] = trio.current_time() + SLOW_FOR
            if verdict.what is What.ALONE and not work.serves and await self._store.at_work() is not None:
                # a runtime may begin the download a moment after it has asked the mirror
                work = await self.look(active)
                if work.serves:
                    continue
            claim.answer(verdict)
            active.tell(before)
            return


class _Alarm:
    """Brings a report forward. A claim refers to it and not to its group, so the group is freed when its work ends."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


class ActiveGroup:
    """A group at work: its claim, and the task that reports."""

    def __init__(self, follows: Follows, group: str) -> None:
        self._follows = follows
        self._due = _Alarm()
        self._answered = trio.Event()
        self.work = GroupWork(follows._store)
        self.claim = GroupClaim(
            group,
            follows.usable,
            trio.current_time,
            self._due.ring,
            follows.count_failure,
            follows.count_received,
        )

    async def verdict(self) -> Provider | None:
        """Wait for a verdict if one is due. Return the source to follow, or None to go upstream."""
        claim = self.claim
        claim.waiting += 1
        try:
            with trio.move_on_after(CLAIM_WITHIN) as waiting:
                while not claim.answered:
                    await self._answered.wait()
            if waiting.cancelled_caught:
                claim.missed()
        finally:
            claim.waiting -= 1
        return claim.to_follow

    def followed(self, source: Provider) -> None:
        """``source`` sends a blob of the group."""
        if self.claim.history.followed(source, trio.current_time()):
            log.info("follow began", **self._facts(), source=host_port(*source.registry))

    def tell(self, before: What | None) -> None:
        """Count and log the consequences of a verdict; ``before``: the verdict before it."""
        claim, size = self.claim, self._follows.size(self.claim.group)
        complete = size is not None and claim.have >= size
        if claim.what is What.CLAIM and before is not What.CLAIM:
            if before is What.FOLLOW and not complete:
                left = claim.history.left
                self._follows.count_takeover()
                log.info("download taken over", **self._facts(), left=left.why if left is not None else None)
            else:
                log.debug("download claimed", **self._facts())
        if complete and not claim.follows:
            claim.history.end(COMPLETE)
        self._tell_end()

    def _tell_end(self) -> None:
        ended = self.claim.history.take_ended() if not self.claim.follows else None
        if ended is not None:
            log.info(
                "follow ended",
                **self._facts(),
                source=host_port(*ended.source.registry),
                sources=ended.sources,
                bytes=ended.received,
                seconds=ended.seconds,
                reason=ended.reason,
            )

    def _facts(self) -> dict[str, str]:
        return {"image": self.claim.history.image, "group": self.claim.group}

    async def run(self) -> None:
        """Report until the work on the group has ended."""
        while not self.claim.ended:
            if trio.current_time() < self.claim.due:
                with trio.move_on_at(self.claim.due):
                    await self._due.wait()
                continue
            await self._follows.report(self)
            self._answered.set()
            self._answered = trio.Event()
        self.claim.history.end(IDLE)
        self._tell_end()
