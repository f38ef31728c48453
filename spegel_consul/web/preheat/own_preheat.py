"""This node's part in a preheat: its runtimes pull the image, one after the other.

A preheat takes disk and line, so it is bounded: one of an image and two in all at the same time, each with a time
limit, and only images that take part in the mirror. It is cancelled when its asker goes away, because Ctrl-C must end a
mistake everywhere, and nothing goes on that nobody watches. A runtime keeps what it has downloaded, so the next pull
goes on there.

A rule about the work that others may make this node do belongs here; a rule about the others who may belongs to
:mod:`spegel_consul.web.access.preheat_access`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull, Runtime
from spegel_consul.store.inventory import CountedStore
from spegel_consul.web.node_views import PreheatRules
from spegel_consul.web.preheat.preheat_report import NodePreheat, OwnReport, RuntimePull, State
from spegel_consul.web.queries.questions import Busy

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 2
LONGEST = 3600.0
"""Time limit of a preheat, in seconds, whatever its asker wants."""
_INDEXED_WITHIN = 2.0  # seconds after a pull until the store knows the image
_LOOK_EVERY = 0.1


class NotMirrored(Exception):
    """The settings of this node exclude the image; the message is one line."""


class OwnPreheats:
    """The preheats of this node. ``store`` knows the size of an image that was pulled."""

    def __init__(self, rules: PreheatRules, store: CountedStore) -> None:
        self._rules = rules
        self._store = store
        self._running: set[str] = set()

    async def run(self, reference: Reference, within: float, report: OwnReport) -> None:
        """Have the runtimes pull the image; ``report`` has the result. Does not raise."""
        try:
            self.check(reference)
        except (NotMirrored, Busy) as exc:
            report.failed(str(exc))
            return
        name, began = str(reference), trio.current_time()
        self._running.add(name)
        try:
            log.info("preheat", image=name)
            with trio.move_on_after(min(within, LONGEST)) as limit:
                await self._pull(reference, report, began + min(within, LONGEST))
            if limit.cancelled_caught:
                report.failed(f"given up after {min(within, LONGEST):g} s")
            found = report.now
            log.info("preheat ended", image=name, state=found.state.value, reason=found.reason)
        except trio.Cancelled:
            log.info("preheat cancelled", image=name, reason="its asker went away")
            raise
        finally:
            self._running.discard(name)

    def check(self, reference: Reference) -> None:
        """Whether :meth:`run` would pull the image now. Raises NotMirrored or Busy."""
        name = str(reference)
        if not self._rules.accepts(name):
            raise NotMirrored(f"the settings of this node exclude {name} (--mirrored-registries, --registry-filters)")
        if name in self._running:
            raise Busy("this node is pulling the image for another preheat; try again when that has ended")
        if len(self._running) >= MOST_AT_ONCE:
            raise Busy(f"{MOST_AT_ONCE} other preheats are going on at this node; try again when one has ended")

    async def _pull(self, reference: Reference, report: OwnReport, deadline: float) -> None:
        try:
            runtimes = await self._rules.runtimes.choose(reference)
        except CantPull as exc:
            report.failed(str(exc))
            return
        pulls = {runtime.name: RuntimePull(runtime.name, State.WAITING) for runtime in runtimes}

        def tell(pull: RuntimePull) -> None:
            pulls[pull.runtime] = pull
            report.set(NodePreheat(tuple(pulls.values()), State.PULLING))

        for runtime in runtimes:
            await self._pull_by(runtime, reference, deadline, tell, alone=len(runtimes) == 1)
        report.set(NodePreheat.ended(tuple(pulls.values())), done=True)

    async def _pull_by(
        self, runtime: Runtime, reference: Reference, deadline: float, tell: Callable[[RuntimePull], None], alone: bool
    ) -> None:
        """``alone``: the node has no other runtime, so an image in the store is one of this runtime."""
        began = trio.current_time()
        now = RuntimePull(runtime.name, State.PULLING)
        tell(now)

        def received(count: int) -> None:
            nonlocal now
            now = replace(now, size=count, seconds=trio.current_time() - began)
            tell(now)

        try:
            await runtime.pull(reference, max(1.0, deadline - began), received)
        except CantPull as exc:
            took = trio.current_time() - began
            # its mirror does not tell a node's runtime of its own tags, so the only node that has an image finds none
            if exc.missing and alone and self._store.resolve(str(reference)) is not None:
                size, reason = await self._size(str(reference)), "the image was here before, and no other place has it"
                tell(replace(now, state=State.DONE, seconds=took, size=size, reason=reason))
                return
            state = State.LEFT_OUT if exc.left_out else State.FAILED
            tell(replace(now, state=state, seconds=took, reason=str(exc), missing=exc.missing))
            return
        took = trio.current_time() - began
        size = await self._size(str(reference))
        tell(replace(now, state=State.DONE, seconds=took, size=now.size if size is None else size))

    async def _size(self, name: str) -> int | None:
        """The bytes of the image in the store; None if the store does not know it by this name in time."""
        with trio.move_on_after(_INDEXED_WITHIN):
            while self._store.resolve(name) is None:
                await trio.sleep(_LOOK_EVERY)
        return next((each.size for each in self._store.stored_images() if each.image.name == name), None)
