"""Prometheus metrics of one sidecar, in a registry of their own.

Names and labels are Spegel's if the meaning is Spegel's, so that its dashboards keep working (pkg/metrics and pkg/httpx
there). Callers keep the children of labelled metrics, because labels() costs more than the increment.

A value that another object counts already is not counted twice: a ``Reading`` reads it at the scrape. So the hot path
updates only the two histograms and the counters of an answer, and a scrape shows the current values.

A new metric belongs here; the object that a reading reads is connected in :mod:`spegel_consul.web.metric_readings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from spegel_consul import __version__
from spegel_consul.metrics.counter import LabelledCounter, LastTime
from spegel_consul.metrics.histogram import LabelledHistogram

disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series and no dashboard uses them

Labels = tuple[str, ...]
CONTENT = "/v2/*"
"""The handler of the distribution API, as Spegel calls it: the pattern of its path."""

_DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Reading:
    """A metric whose value another object keeps, and which is read at the scrape.

    ``counter``: whether the value only grows; the scraped name then ends in ``_total``.
    """

    def __init__(self, name: str, about: str, labels: Sequence[str] = (), *, counter: bool = False) -> None:
        self._family = CounterMetricFamily if counter else GaugeMetricFamily
        self.name, self.about, self.labels = name, about, tuple(labels)
        self._read: Callable[[], float | Mapping[Labels, float] | None] = lambda: None

    @property
    def scraped(self) -> str:
        """The scraped name."""
        return f"{self.name}_total" if self._family is CounterMetricFamily else self.name

    def set_function(self, read: Callable[[], float | Mapping[Labels, float] | None]) -> None:
        """``read()`` returns the value, or one for each tuple of label values; None: there is no value now."""
        self._read = read

    def family(self) -> Metric:
        """The metric with its current values."""
        family = self._family(self.name, self.about, labels=self.labels)
        found = self._read()
        if found is not None:
            for labels, value in found.items() if isinstance(found, Mapping) else (((), found),):
                family.add_metric(labels, float(value))
        return family


_Collected = Reading | LabelledCounter | LabelledHistogram


class _Readings:
    """A collector of prometheus_client for all readings."""

    def __init__(self, readings: Sequence[_Collected]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for reading in self._readings:
            yield reading.family()


class Metrics:
    """One instance per sidecar, so that several sidecars in one process do not share values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._readings: list[_Collected] = []
        self._of_requests()
        self._of_content()
        self._of_the_ring()
        self._of_consul()
        self._of_the_process()
        self.registry.register(_Readings(self._readings))

    def labels(self) -> dict[str, Labels]:
        """The labels of each metric of this module, by its scraped name."""
        found = {each.name: each.label_names for each in self._readings if isinstance(each, LabelledHistogram)}
        found |= {each.scraped: each.labels for each in self._readings if isinstance(each, Reading)}
        found |= {
            f"{each.name}_total": each.label_names for each in self._readings if isinstance(each, LabelledCounter)
        }
        return found | {"spegel_loop_lateness_seconds": (), "spegel_build_info": ("version",)}

    def mirrored(self) -> tuple[float, float]:
        """The requests that were looked up at peers: those that one answered, and those that none did."""
        counts = self.mirror_requests.children.items()
        hits, misses = (
            sum(count.value for (_registry, cache), count in counts if cache == wanted) for wanted in ("hit", "miss")
        )
        return hits, misses

    def _of_requests(self) -> None:
        self.mirror_requests = self._counter(
            "spegel_mirror_requests",
            "Requests of clients that were looked up at peers, by whether one had the content.",
            ["registry", "cache"],
        )
        self.mirror_last_success = last_success = LastTime()
        self._reading(
            "spegel_mirror_last_success_timestamp_seconds", "Unix time of the last request that a peer answered."
        ).set_function(lambda: last_success.value)
        self.resolve_duration = self._histograms(
            "spegel_resolve_duration_seconds",
            "Time until the first provider of a key was known.",
            (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            ("router",),
        )
        self.served_bytes = self._counter(
            "spegel_served_bytes",
            "Bytes of content sent to clients and peers, by where they came from: own store or a peer.",
            ["source"],
        )
        self.received_bytes = self._counter(
            "spegel_received_bytes",
            "Bytes of content that peers have sent, by their place: this rack, zone or datacenter, another one (other),"
            " or unknown.",
            ["place"],
        )
        self.verification_failures = self._counter(
            "spegel_verification_failures",
            "Answers of peers whose bytes did not have the requested digest.",
        ).labels()
        self.verify_first = self._counter(
            "spegel_verify_first",
            "Blobs of peers to be verified before their first byte is sent, by result.",
            ["result"],
        )
        self.tag_choices = self._counter(
            "spegel_tag_choices",
            "Tags that were asked of peers, by the choice: only (one peer answered), agreed, newest (they differed),"
            " own (theirs were older), too_old (beyond --tag-max-age).",
            ["choice"],
        )
        self.tag_checks = self._counter(
            "spegel_tag_checks",
            "Tags that were checked at their registries, by the result: same, moved (answered 404), denied,"
            " unreachable (both sent as without the check).",
            ["result"],
        )
        self.transfers_cut = self._counter(
            "spegel_transfers_cut",
            "Answers to clients that ended before their last byte because no peer could go on.",
        ).labels()
        self._of_uploads()
        self._of_claims()
        self.peer_stalls = self._reading(
            "spegel_peer_stalls", "Peers that kept this node waiting until a deadline.", counter=True
        )
        self.live_transfers = self._reading(
            "spegel_live_transfers", "Requests that are being looked up or streamed from peers now."
        )
        self.followers = self._reading(
            "spegel_followers", "Peers' requests that are answered from a download in progress, or wait for its bytes."
        )
        self.http_requests = self._histograms(
            "http_request_duration_seconds", "Time to answer a request, bytes included.", _DURATIONS
        )
        self.http_response_size = self._histograms(
            "http_response_size_bytes",
            "Bytes of content in an answer.",
            tuple(1024.0 * 5**power for power in range(10)),  # as Spegel: 1 KiB to 2 GB
        )
        self.http_inflight = self._reading(
            "http_requests_inflight", "Requests that are being answered now.", ["handler"]
        )
        self.open_connections = self._reading(
            "spegel_open_connections",
            "Open connections, by port.",
            ["port"],
        )

    def _of_uploads(self) -> None:
        self.uploads = self._reading("spegel_uploads", "Bodies larger than 64 KiB that peers are being sent now.")
        self.uploads_refused = self._reading(
            "spegel_uploads_refused",
            "Requests of peers that this node refused because it was busy; see --max-upload.",
            counter=True,
        )
        self.busy_peers = self._counter(
            "spegel_busy_peers", "Answers of peers that were busy, after which another peer was asked."
        ).labels()

    def _of_claims(self) -> None:
        self.claims = self._counter(
            "spegel_claims",
            "Reports to the keepers of claims, by their verdict; none if no keeper answered.",
            ["verdict"],
        )
        self.claim_seconds = self._histograms(
            "spegel_claim_seconds",
            "Time until a keeper answered a report.",
            (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            (),
        ).labels()
        self.followed_bytes = self._counter(
            "spegel_followed_bytes", "Bytes of content that came from nodes that were still downloading it."
        ).labels()
        self.follow_failures = self._counter(
            "spegel_follow_failures", "Sources that were left while they were downloading, by the reason.", ["why"]
        )
        self.takeovers = self._counter(
            "spegel_takeovers", "How often this node became a claimer of content that it had followed."
        ).labels()

    def _of_content(self) -> None:
        self.advertised_keys = self._reading(
            "spegel_advertised_keys", "Digests and image names that this node announces."
        )
        self.advertised_image_tags = self._reading(
            "spegel_advertised_image_tags", "Tagged image names that this node announces.", ["registry"]
        )
        self.advertised_image_digests = self._reading(
            "spegel_advertised_image_digests", "Different images behind the names that are announced.", ["registry"]
        )
        self.advertised_content_digests = self._reading(
            "spegel_advertised_content_digests",
            "Digests of content that this node announces: manifests, configurations and layers.",
            ["registry"],
        )

        self.images_only_here = self._reading(
            "spegel_images_only_here",
            "Images of this node that no other node has, as of the last count; there is one every ten minutes.",
        )

    def _of_the_ring(self) -> None:
        self.ring_members = self._reading(
            "spegel_ring_members", "Other members of the ring that are believed to be alive."
        )
        self.ring_full = self._reading(
            "spegel_ring_full", "1 while the table of members is full: the ring may have more nodes than it holds."
        )
        self.ring_missing = self._reading(
            "spegel_ring_missing", "Healthy routers in the catalog that this node's ring does not have."
        )
        self.ring_split = self._reading(
            "spegel_ring_split", "1 while at least one healthy router of the catalog is missing in the ring."
        )
        self.ring_rejoins = self._reading(
            "spegel_ring_rejoins", "How often this node joined the ring again.", counter=True
        )
        self.ring_restarts = self._reading(
            "spegel_ring_restarts", "How often the router was replaced by a new one.", counter=True
        )
        self.ring_splits = self._reading(
            "spegel_ring_splits",
            "How often parts of the ring were found that did not know each other; they are joined then.",
            counter=True,
        )
        self.unannounced = self._reading(
            "spegel_unannounced_records", "Announcements that wait for the acknowledgement of a peer."
        )
        self.records = self._reading("spegel_provider_records", "Announcements of other nodes that this node stores.")

    def _of_consul(self) -> None:
        self.leader = self._reading("spegel_leader", "1 while this node holds the lock of the bootstrap peer.")
        self.leader_flapping = self._reading(
            "spegel_leader_flapping",
            "1 while the elected leader changes so often that changes are not followed; 0 where nothing is elected.",
        )
        self.catalog_members = self._reading(
            "spegel_catalog_members", "Healthy routers in Consul's catalog, this one among them."
        )
        self.session_renewals = self._reading(
            "spegel_session_renewals",
            "Renewals of Consul sessions, by whether they worked.",
            ["result"],
            counter=True,
        )
        self.consul_staleness = self._reading(
            "spegel_consul_staleness_seconds",
            "Seconds since Consul last answered, or since the start if it never did; queries may block for a minute"
            " when nothing changes.",
        )

        self.certificate_expiry = self._reading(
            "spegel_certificate_expiry_seconds",
            "Seconds until the certificate of Consul for connections between nodes expires; renewed long before 0.",
        )
        self.certificate_problem = self._reading(
            "spegel_certificate_problem",
            "1 while this node has no valid certificate for connections between nodes, or one that is not renewed (as"
            " in /readyz).",
        )

    def _of_the_process(self) -> None:
        Info("spegel_build", "The running version.", registry=self.registry).info({"version": __version__})
        self.ready = self._reading("spegel_ready", "1 while this node can serve its content (as in /readyz).")
        self.loop_lateness = Histogram(
            "spegel_loop_lateness_seconds",
            "How late a timer of the event loop was; a long time means that one task delayed all others.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2),
            registry=self.registry,
        )

    def _counter(self, name: str, about: str, labels: Sequence[str] = ()) -> LabelledCounter:
        counter = LabelledCounter(name, about, labels)
        self._readings.append(counter)
        return counter

    def _histograms(
        self, name: str, about: str, buckets: Sequence[float], labels: Labels = ("handler", "method", "code")
    ) -> LabelledHistogram:
        histograms = LabelledHistogram(name, about, labels, buckets)
        self._readings.append(histograms)
        return histograms

    def _reading(self, name: str, about: str, labels: Sequence[str] = (), *, counter: bool = False) -> Reading:
        reading = Reading(name, about, labels, counter=counter)
        self._readings.append(reading)
        return reading
