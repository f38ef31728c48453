"""Writes docs/metrics.md, the reference of all metrics, from the metrics themselves; a test compares it.

python .ci/metrics_reference.py >docs/metrics.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prometheus_client.core import Metric

from spegel_consul.metrics.sidecar_metrics import Metrics

_HEAD = """\
# Metrics

<!-- written by: python .ci/metrics_reference.py >docs/metrics.md -->

At `http://NODE:9090/metrics`, in the format of Prometheus. Names and labels are Spegel's where the meaning is, so its
dashboards and alerts go on working. [prometheus.yml](prometheus.yml) finds all nodes through Consul, and
[grafana/spegel-consul.json](grafana/spegel-consul.json) is a dashboard to import.
[cold-start.md](cold-start.md#how-to-see-it) says what the metrics of claims and follows mean together.

`handler` has three values, which are Spegel's: `/v2/*` for the distribution API, `/readyz` and `/livez`. Other paths
are not counted. `method` is `GET`, `HEAD` or `other`. `registry` is the one that the runtime asked for, `unknown` for a
digest that it asked for without one; what comes after the first hundred of them is counted as `other`.

Counting costs 0.9 µs for an answer from the own store and 1.8 µs for a mirrored one (`python -m bench.counting`); what
can be asked when somebody scrapes costs requests nothing.

| metric | type | labels | meaning |
|---|---|---|---|
"""

_ALERTS = """
## What to be told of

| expression | what it means |
|---|---|
| `up{job="spegel-consul"} == 0` | the sidecar does not answer; pulls there go upstream |
| `spegel_ready == 0` | containerd or Docker can't be reached; `/readyz` has the reason |
| `max by (instance) (spegel_ring_split) > 0` for 5 minutes | the ring lacks healthy routers of the catalog |
| `sum(spegel_leader) != 1` for 1 minute | not exactly one leads; the ring goes on, and nodes that start join late |
| `increase(spegel_verification_failures_total[1h]) > 0` | a peer has wrong bytes; the log names it |
| `rate(spegel_transfers_cut_total[5m]) > 0.1` | transfers end early, and runtimes fetch the rest upstream |
| `sum(rate(spegel_claims_total{verdict="none"}[15m])) > 0.1` | keepers do not answer: nodes go upstream on their own |
| `sum(spegel_images_only_here) > 0` | images would be lost with their only node: see [copies.md](copies.md) |
| `sum(rate(spegel_tag_choices_total{choice="newest"}[1h])) > 0` | a tag differs between nodes: see [tags.md](tags.md) |
| `spegel_consul_staleness_seconds > 120` | the agent does not answer; what is known is kept |
| `histogram_quantile(0.99, rate(spegel_loop_lateness_seconds_bucket[5m])) > 0.1` | the loop is held up |
"""


def reference() -> str:
    """The text of docs/metrics.md."""
    return _HEAD + "".join(sorted(_lines())) + _ALERTS


def names() -> frozenset[str]:
    """All names that can be scraped from a node, those of histograms' parts among them."""
    found: set[str] = set()
    for family in _families():
        name = _name(family)
        found |= {name, *(f"{name}{part}" for part in _PARTS.get(family.type, ()))}
    return frozenset(found)


_PARTS = {"histogram": ("_bucket", "_sum", "_count")}


def _families() -> Iterator[Metric]:
    metrics = Metrics()
    yield from metrics.registry.collect()


def _lines() -> Iterator[str]:
    labels = Metrics().labels()
    for family in _families():
        name = _name(family)
        if name.startswith(("spegel_", "http_")):
            shown = ", ".join(f"`{label}`" for label in labels.get(name, ()))
            yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |\n"


def _name(family: Metric) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name + suffix if not family.name.endswith(suffix) or not suffix else family.name


if __name__ == "__main__":
    sys.stdout.write(reference())
