"""The lifecycle: the stages are started from the inside out and stopped in reverse.

:mod:`prepare` checks the settings and the machine. Then :mod:`content` starts the store, the ring and the ports, and
:mod:`cluster` starts Consul and the join. So no peer and no catalog learns of this node before it can answer. The stop
goes backwards: the catalog removes the node, the lock is released, and then the transfers in flight have their time to
end. Only the ring is told at once, beside all of that. Signals and the order of these three modules belong here; a new
part belongs to one of them.
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import structlog
import trio

from spegel_consul import __version__
from spegel_consul.log import level
from spegel_consul.peers import RingError
from spegel_consul.sidecar import heap, watchdog
from spegel_consul.sidecar.cluster import start_cluster
from spegel_consul.sidecar.content import start_content
from spegel_consul.sidecar.prepare import PreparedNode, StartError, log_findings, prepare
from spegel_consul.sidecar.settings import Settings
from spegel_consul.sidecar.stages import Stages, attempt
from spegel_consul.signals import stop_signals
from spegel_consul.web import metric_readings
from spegel_consul.web.node_views import Node

log = structlog.get_logger(__name__)

_SAME_SIGNAL = 1.0  # seconds


class NewStartNeeded(Exception):
    """The sidecar has stopped in order, because only another start can go on; the log has the reason."""


async def run(settings: Settings) -> None:
    """Run until one of ``stop_signals()``. SIGUSR1 switches the log level. Raises StartError and NewStartNeeded."""
    node = prepare(settings)
    # signals are received from the start until the stop is over, so that none cuts it short
    with trio.open_signal_receiver(*stop_signals(), signal.SIGUSR1) as signals:
        await _run(settings, node, signals)
        log.info("stopped")
    if node.address_watch.superseded.is_set():
        raise NewStartNeeded


async def _run(settings: Settings, node: PreparedNode, signals: AsyncIterator[int]) -> None:
    problem: RingError | None = None
    # resources outlive the nursery, however that ends, because tasks use them in their own end
    async with AsyncExitStack() as resources, trio.open_nursery() as nursery:
        stopping = trio.Event()
        nursery.start_soon(_on_signal, signals, stopping, nursery.cancel_scope)
        nursery.start_soon(_stop_with, node.address_watch.superseded, stopping)
        if settings.heartbeat is not None:
            nursery.start_soon(watchdog.beat, settings.heartbeat, settings.hang_timeout)
        stages = Stages(nursery)
        try:
            # if a stop signal arrives during start-up, the start-up is abandoned
            with trio.CancelScope() as starting:
                nursery.start_soon(_cancel_at, stopping, starting)
                view = await _start(settings, node, stages, resources, stopping)
        except RingError as exc:
            problem = exc
        if problem is None:
            if not starting.cancelled_caught:
                log.info("started", registry=node.registry_url, router=str(node.router_port), version=__version__)
                if not settings.skip_preflight:
                    nursery.start_soon(attempt, "preflight", partial(log_findings, settings, node, view.problem()))
            await stopping.wait()
            log.info("stopping")
        await stages.stop()
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise StartError(str(problem))


async def _start(
    settings: Settings, node: PreparedNode, stages: Stages, resources: AsyncExitStack, stopping: trio.Event
) -> Node:
    content = await start_content(settings, node, stages, resources, stopping)
    await stages.start("loop lateness", partial(metric_readings.watch_the_loop, content.view.metrics))
    await stages.start("history", partial(metric_readings.keep_history, content.view))
    await start_cluster(settings, node, content, stages, resources)
    await stages.start("heap", heap.keep_small)
    return content.view


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _stop_with(event: trio.Event, stopping: trio.Event) -> None:
    await event.wait()
    stopping.set()


async def _on_signal(signals: AsyncIterator[int], stopping: trio.Event, everything: trio.CancelScope) -> None:
    """The first signal asks for an orderly stop, a later one for an immediate stop; SIGUSR1 switches the log level.

    A signal that follows within a second is the same one: systemd and terminals send it to the guard and to the
    sidecar, and the guard passes it on.
    """
    asked_at = -math.inf
    async for number in signals:
        if number == signal.SIGUSR1:
            level.toggle()
            log.warning("log level changed", level=level.current)
        elif not stopping.is_set():
            asked_at = trio.current_time()
            stopping.set()
        elif trio.current_time() > asked_at + _SAME_SIGNAL:
            everything.cancel()
