"""Measure what the metrics cost a request: python -m bench.counting

The calls that a request's path makes, on the metrics of a sidecar, in one thread as there: the median of nine runs,
lowest and highest behind it. They should stay below 2 µs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from spegel_consul.metrics.sidecar_metrics import CONTENT, Metrics
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.trace import Traces

_RUNS, _TIMES = 9, 50_000


def main() -> None:
    metrics = Metrics()
    duration, length = (
        each.labels(CONTENT, "GET", 200) for each in (metrics.http_requests, metrics.http_response_size)
    )
    own, peer = metrics.served_bytes.labels("own"), metrics.served_bytes.labels("peer")
    resolve = metrics.resolve_duration.labels("libp2p")
    hits = metrics.mirror_requests.labels("docker.io", "hit")
    traces, reference = Traces(), Reference.parse("docker.io/library/app:v1")

    def answered() -> None:
        began = time.perf_counter()
        own.inc(1024)
        length.observe(1024)
        duration.observe(time.perf_counter() - began)

    def mirrored() -> None:
        began = time.perf_counter()
        resolve.observe(0.0004)
        hits.inc()
        metrics.mirror_last_success.set_to_current_time()
        peer.inc(1 << 20)
        length.observe(1 << 20)
        duration.observe(time.perf_counter() - began)

    def traced() -> None:
        with traces.begin(reference, reference.key, "blobs", "GET"):
            pass

    print("µs for each request")
    for name, path in (
        ("answered from the own store", answered),
        ("mirrored", mirrored),
        ("its trace, for the status page", traced),
    ):
        costs = sorted(_cost(path) for _ in range(_RUNS))
        print(f"  {name:32} {statistics.median(costs):5.2f}  ({costs[0]:.2f} to {costs[-1]:.2f})")


def _cost(path: Callable[[], None]) -> float:
    began = time.process_time()
    for _ in range(_TIMES):
        path()
    return (time.process_time() - began) / _TIMES * 1e6


if __name__ == "__main__":
    main()
