"""Connects the readings of :class:`Metrics` with the objects of a node that have the values.

A value that an object already keeps is read at each scrape and not counted a second time. A new reading belongs here;
its name and help belong to :mod:`spegel_consul.metrics.sidecar_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import trio

from spegel_consul.election.election_view import State
from spegel_consul.metrics.sidecar_metrics import Labels, Metrics
from spegel_consul.ring.members.table import FULL
from spegel_consul.web.node_views import Consul, Node

LATENESS_PERIOD = 0.25
"""Seconds between two measurements of the event loop's lateness."""

_MINUTE = 60.0


def connect(node: Node) -> None:
    """Let the metrics of ``node`` read the values of its parts."""
    metrics, ring, store = node.metrics, node.ring, node.store
    metrics.ready.set_function(lambda: node.problem() is None)
    metrics.peer_stalls.set_function(lambda: node.penalties.stalls)
    metrics.uploads.set_function(lambda: node.uploads.streams)
    metrics.uploads_refused.set_function(lambda: node.uploads.refused)
    metrics.live_transfers.set_function(lambda: len(node.traces.live))
    metrics.advertised_keys.set_function(lambda: len(store.keys()))
    metrics.advertised_image_tags.set_function(lambda: _by_registry(store.advertised().tags))
    metrics.advertised_image_digests.set_function(lambda: _by_registry(store.advertised().images))
    metrics.advertised_content_digests.set_function(lambda: _by_registry(store.advertised().contents))
    metrics.ring_members.set_function(lambda: len(ring.members()))
    metrics.ring_full.set_function(lambda: ring.warning == FULL)
    metrics.unannounced.set_function(lambda: ring.unannounced)
    metrics.records.set_function(lambda: ring.records)
    metrics.ring_rejoins.set_function(lambda: node.keeper.rejoins if node.keeper is not None else 0)
    metrics.ring_restarts.set_function(lambda: node.keeper.restarts if node.keeper is not None else 0)
    metrics.ring_splits.set_function(lambda: node.keeper.splits if node.keeper is not None else 0)
    metrics.leader.set_function(
        lambda: node.candidate.view.state is State.LEADER if node.candidate is not None else None
    )
    metrics.leader_flapping.set_function(lambda: node.keeper is not None and node.keeper.flapping)
    metrics.certificate_expiry.set_function(lambda: _left(node))
    metrics.certificate_problem.set_function(lambda: node.tls.problem is not None if node.tls is not None else None)
    _connect_consul(node, metrics)


def _connect_consul(node: Node, metrics: Metrics) -> None:
    """``node.consul`` is set when Consul's stages start, so each reading looks it up at the scrape."""
    began = trio.current_time()

    def read(what: Callable[[Consul], float | Mapping[Labels, float] | None]) -> Callable[[], Any]:
        return lambda: what(node.consul) if node.consul is not None else None

    metrics.catalog_members.set_function(read(lambda consul: len(consul.members)))
    missing = _Missing(node)
    metrics.ring_missing.set_function(read(missing.number))
    metrics.ring_split.set_function(read(lambda consul: missing.number(consul) > 0))
    metrics.session_renewals.set_function(
        read(lambda consul: {(result,): float(number) for result, number in consul.client.renewals.items()})
    )
    metrics.consul_staleness.set_function(
        read(lambda consul: trio.current_time() - (began if (at := consul.client.answered_at) is None else at))
    )


class _Missing:
    """The routers of the catalog that the ring lacks, compared anew only after a change of either."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._compared: tuple[object, object] = (None, None)
        self._number = 0

    def number(self, consul: Consul) -> int:
        """Return their number."""
        # the same objects as before are the same lists, which have thousands of entries
        catalog, members = consul.members, self._node.ring.members()
        if self._compared[0] is not catalog or self._compared[1] is not members:
            self._compared, self._number = (catalog, members), len(self._node.cluster_members().missing)
        return self._number


async def watch_the_loop(metrics: Metrics, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Measure the lateness of timers until cancelled."""
    task_status.started()
    while True:
        due = trio.current_time() + LATENESS_PERIOD
        await trio.sleep_until(due)
        metrics.loop_lateness.observe(trio.current_time() - due)


async def keep_history(node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Note the counters that the status page has a history of, once a minute until cancelled."""
    task_status.started()
    while True:
        node.history.note(trio.current_time())
        await trio.sleep(_MINUTE - trio.current_time() % _MINUTE)


def _left(node: Node) -> float | None:
    expires = node.tls.expires if node.tls is not None else None
    return None if expires is None else expires - time.time()


def _by_registry(counts: Mapping[str, int]) -> dict[Labels, float]:
    return {(registry,): float(number) for registry, number in counts.items()}
