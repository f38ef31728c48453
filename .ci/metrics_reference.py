"""Writes docs/metrics.md, the reference of all metrics, from the metrics themselves; a test compares it.

python .ci/metrics_reference.py >docs/metrics.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.core import Metric

from spegel_consul.metrics.sidecar_metrics import Metrics

_HEAD = """\
# Metrics

<!-- written by: python .ci/metrics_reference.py >docs/metrics.md -->

This page is the reference of all metrics and alerts. A sidecar has its metrics at `http://NODE:9090/metrics`, in the
format of Prometheus. A metric that Spegel has too has Spegel's name and labels, so Spegel's dashboards and alerts work.

- [prometheus.yml](prometheus.yml) lets Prometheus find all nodes through Consul.
- [grafana/spegel-consul.json](grafana/spegel-consul.json) is a dashboard to import.
- [Cold start](cold-start.md#how-to-see-it) explains the metrics of claims and followed downloads.

| label | values |
|---|---|
| `handler` | as in Spegel: `/v2/*` for the distribution API, `/readyz` and `/livez`. Other paths are not counted |
| `method` | `GET`, `HEAD` or `other` |
| `registry` | the registry of the request; `unknown` for a digest without one; `other` from the 101st registry on |

Counting costs 0.9 µs for an answer from the own store and 1.8 µs for a mirrored one (`python -m bench.counting`). Other
figures are read at the time of a scrape, so they cost requests nothing.

| metric | type | labels | meaning |
|---|---|---|---|
"""

_ALERTS = """
## Alerts

[alerts.yml](alerts.yml) has these alerts for Prometheus. [Alerts](alerts.md) says what to do about each.

| alert | expression | for | what it means |
|---|---|---|---|
"""


def alerts() -> list[dict[str, Any]]:
    """The rules of docs/alerts.yml."""
    text = (Path(__file__).parents[1] / "docs/alerts.yml").read_text()
    (group,) = yaml.safe_load(text)["groups"]
    return list(group["rules"])


def reference() -> str:
    """The text of docs/metrics.md."""
    rows = [
        f"| [{rule['alert']}]({_beside(rule['annotations']['runbook'])}) | `{rule['expr']}` | {rule.get('for', '')} "
        f"| {rule['annotations']['summary']} |\n"
        for rule in alerts()
    ]
    return _HEAD + "".join(sorted(_lines())) + _ALERTS + "".join(rows)


def _beside(runbook: str) -> str:
    """The link to it from a page of docs/."""
    return runbook.removeprefix("docs/")


def names() -> frozenset[str]:
    """All names that can be scraped from a node, those of histograms' parts among them."""
    return frozenset(about())


def about() -> dict[str, str]:
    """What each metric means, by the names that :func:`names` has."""
    found: dict[str, str] = {}
    for family in _families():
        for part in ("", *_PARTS.get(family.type, ())):
            found[f"{_name(family)}{part}"] = family.documentation
    return found


def labels() -> dict[str, tuple[str, ...]]:
    """The labels of each metric of the product, by its name without parts of histograms."""
    return Metrics().labels()


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
