# Names and labels are Spegel's where the meaning is Spegel's, so that its dashboards keep working.
# Children of labelled metrics are looked up once and kept: labels() costs more than the increment.

"""Prometheus metrics of one sidecar, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector


class Metrics:
    """One instance per sidecar; several sidecars in one process do not mix their figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.mirror_requests = Counter(
            "spegel_mirror_requests",
            "Requests of clients that were looked up at peers, by whether one had the content.",
            ["registry", "cache"],
            registry=self.registry,
        )
        self.mirror_last_success = Gauge(
            "spegel_mirror_last_success_timestamp_seconds",
            "Unix time of the last request that a peer answered.",
            registry=self.registry,
        )
        self.resolve_duration = Histogram(
            "spegel_resolve_duration_seconds",
            "Time until the first provider of a key was known.",
            ["router"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.served_bytes = Counter(
            "spegel_served_bytes",
            "Bytes of content sent to clients and peers, by where they came from: own store or a peer.",
            ["source"],
            registry=self.registry,
        )
        self.verification_failures = Counter(
            "spegel_verification_failures",
            "Answers of peers whose bytes did not have the digest that was asked for.",
            registry=self.registry,
        )
        self.transfers_cut = Counter(
            "spegel_transfers_cut",
            "Answers to clients that ended before their last byte because no peer could go on.",
            registry=self.registry,
        )
        self.advertised_keys = Gauge(
            "spegel_advertised_keys",
            "Digests and image names that this node announces.",
            registry=self.registry,
        )
        self.ring_members = Gauge(
            "spegel_ring_members",
            "Other members of the ring that are believed to be alive.",
            registry=self.registry,
        )
        self.ring_rejoins = Gauge(
            "spegel_ring_rejoins",
            "How often the ring was joined again because the bootstrap peer changed.",
            registry=self.registry,
        )
        self.ring_restarts = Gauge(
            "spegel_ring_restarts",
            "How often the router was made anew.",
            registry=self.registry,
        )
        self.ring_splits = Gauge(
            "spegel_ring_splits",
            "How often parts of the ring were found that did not know each other; they are joined then.",
            registry=self.registry,
        )
        self.ring_missing = Gauge(
            "spegel_ring_missing",
            "Healthy routers of the catalog that are not members of the ring.",
            registry=self.registry,
        )
        self.leader_flapping = Gauge(
            "spegel_leader_flapping",
            "1 while the bootstrap peer changes so often that its changes are not followed.",
            registry=self.registry,
        )
        self.leader = Gauge(
            "spegel_leader",
            "1 while this node holds the lock of the bootstrap peer.",
            registry=self.registry,
        )
        self.http_requests = Histogram(
            "http_request_duration_seconds",
            "Time to answer a request, bytes included.",
            ["handler", "method", "code"],
            registry=self.registry,
        )
