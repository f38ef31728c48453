"""Writes docs/grafana/spegel-consul.json, the dashboard, with the classes that Grafana generates from its own schema.

python .ci/dashboard.py >docs/grafana/spegel-consul.json

The classes are those of Grafana 10.4, because later versions read the dashboards of earlier ones. A panel's description
is that of its metrics. A new metric belongs in a panel here; a test compares the file, and names metrics without one.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import DataSourceRef, FieldColorModeId, VariableOption, VariableRefresh

_ABOUT: Mapping[str, str] = runpy.run_path(str(Path(__file__).with_name("metrics_reference.py")))["about"]()
_SOURCE = DataSourceRef("prometheus", "${datasource}")
_WIDTH = 24


def of(metric: str, more: str = "") -> str:
    """A metric of the nodes that are chosen."""
    return f'{metric}{{job=~"$job", node=~"$node"{more}}}'


def rate(metric: str, more: str = "") -> str:
    return f"rate({of(metric, more)}[$__rate_interval])"


def rises(metric: str, by: str = "") -> str:
    return f"sum{by and f' by ({by}) '}(increase({of(metric)}[$__rate_interval]))"


def quantiles(histogram: str, *wanted: str) -> dict[str, str]:
    buckets = rate(f"{histogram}_bucket")
    return {f"p{each[2:]:0<2}": f"histogram_quantile({each}, sum by (le) ({buckets}))" for each in wanted}


@dataclass(frozen=True)
class Chart:
    """Lines over time; ``queries``: expressions by their legends."""

    title: str
    queries: dict[str, str]
    unit: str = "short"


@dataclass(frozen=True)
class Figure:
    """One large number, or one for each legend."""

    title: str
    query: str
    unit: str = "short"
    legend: str = ""
    width: int = 4


_REQUESTS = "spegel_mirror_requests_total"
_HITS = rate(_REQUESTS, ', cache="hit"')
_PEER = ', source="peer"'
_ANSWERS = rate("http_request_duration_seconds_count")
_LATE = rate("spegel_loop_lateness_seconds_bucket")

ROWS: dict[str, tuple[Chart | Figure, ...]] = {
    "At a glance": (
        Figure("Nodes that answer", f"sum({of('up')})"),
        Figure("Nodes that are ready", f"sum({of('spegel_ready')})"),
        Figure("Leaders", f"sum({of('spegel_leader')})"),
        Figure("Nodes in a split ring", f"sum({of('spegel_ring_split')})"),
        Figure("Requests that neighbours answered", f"sum({_HITS}) / sum({rate(_REQUESTS)})", "percentunit"),
        Figure("Kept off the internet, 24 h", f"sum(increase({of('spegel_served_bytes_total', _PEER)}[24h]))", "bytes"),
        Figure("Images on one node only", f"sum({of('spegel_images_only_here')})"),
        Figure("First certificate expires in", f"min({of('spegel_certificate_expiry_seconds')})", "s"),
        Figure("Versions", f"count by (version) ({of('spegel_build_info')})", legend="{{version}}", width=16),
    ),
    "Traffic": (
        Chart("Mirrored requests", {"{{cache}}": f"sum by (cache) ({rate(_REQUESTS)})"}, "reqps"),
        Chart(
            "Bytes sent, by where they came from",
            {"{{source}}": f"sum by (source) ({rate('spegel_served_bytes_total')})"},
            "Bps",
        ),
        Chart(
            "Bytes received, by the place of the peer",
            {"{{place}}": f"sum by (place) ({rate('spegel_received_bytes_total')})"},
            "Bps",
        ),
        Chart(
            "Requests by registry", {"{{registry}}": f"topk(10, sum by (registry) ({rate(_REQUESTS)}))"}, "reqps"
        ),
        Chart("Time to find a peer", quantiles("spegel_resolve_duration_seconds", "0.5", "0.9", "0.99"), "s"),
        Chart("Time to answer", quantiles("http_request_duration_seconds", "0.5", "0.9", "0.99"), "s"),
        Chart("Answers by status", {"{{code}}": f"sum by (code) ({_ANSWERS})"}, "reqps"),
        Chart("Size of answers", quantiles("http_response_size_bytes", "0.5", "0.99"), "bytes"),
        Chart(
            "Since the last success",
            {"{{node}}": f"time() - max by (node) ({of('spegel_mirror_last_success_timestamp_seconds')} > 0)"},
            "s",
        ),
    ),
    "New images: nodes that follow a download": (
        Chart(
            "Bytes from nodes that were still downloading",
            {"{{node}}": f"sum by (node) ({rate('spegel_followed_bytes_total')})"},
            "Bps",
        ),
        Chart("Requests that follow a download", {"{{node}}": of("spegel_followers")}),
        Chart("Claims by verdict", {"{{verdict}}": f"sum by (verdict) ({rate('spegel_claims_total')})"}, "reqps"),
        Chart("Time until a keeper answered", quantiles("spegel_claim_seconds", "0.5", "0.99"), "s"),
        Chart("Sources that were left, by the reason", {"{{why}}": rises("spegel_follow_failures_total", "why")}),
        Chart("Takeovers", {"{{node}}": rises("spegel_takeovers_total", "node")}),
    ),
    "Load": (
        Chart(
            "In flight",
            {
                "requests": f"sum({of('http_requests_inflight')})",
                "from peers": f"sum({of('spegel_live_transfers')})",
            },
        ),
        Chart("Large bodies that peers are being sent", {"{{node}}": of("spegel_uploads")}),
        Chart(
            "Busy nodes",
            {
                "requests refused (--max-upload)": rises("spegel_uploads_refused_total"),
                "answers of busy peers": rises("spegel_busy_peers_total"),
            },
        ),
        Chart("Open connections", {"{{port}}": f"sum by (port) ({of('spegel_open_connections')})"}),
        Chart("Memory", {"{{node}}": of("process_resident_memory_bytes")}, "bytes"),
        Chart("CPU", {"{{node}}": rate("process_cpu_seconds_total")}),
    ),
    "Tags and copies": (
        Chart("Tags by the choice among peers", {"{{choice}}": rises("spegel_tag_choices_total", "choice")}),
        Chart("Tags checked at their registries", {"{{result}}": rises("spegel_tag_checks_total", "result")}),
        Chart("Images that no other node has", {"{{node}}": of("spegel_images_only_here")}),
        Chart(
            "What is announced",
            {
                "tags": f"sum({of('spegel_advertised_image_tags')})",
                "images": f"sum({of('spegel_advertised_image_digests')})",
                "contents": f"sum({of('spegel_advertised_content_digests')})",
                "keys": f"sum({of('spegel_advertised_keys')})",
            },
        ),
        Chart("Announcements that wait", {"{{node}}": of("spegel_unannounced_records")}),
        Chart("Records kept for others", {"{{node}}": of("spegel_provider_records")}),
    ),
    "Trouble": (
        Chart(
            "Wrong bytes, cuts, stalls",
            {
                "wrong bytes": rises("spegel_verification_failures_total"),
                "cut": rises("spegel_transfers_cut_total"),
                "stalled peers": rises("spegel_peer_stalls_total"),
            },
        ),
        Chart("Verified before the first byte", {"{{result}}": rises("spegel_verify_first_total", "result")}),
        Chart(
            "Lateness of the event loop, p99",
            {"{{node}}": f"histogram_quantile(0.99, sum by (le, node) ({_LATE}))"},
            "s",
        ),
    ),
    "Consul, leader, certificates": (
        Chart("Consul's last answer", {"{{node}}": f"max by (node) ({of('spegel_consul_staleness_seconds')})"}, "s"),
        Chart("Session renewals", {"{{result}}": f"sum by (result) ({rate('spegel_session_renewals_total')})"}, "ops"),
        Chart("Certificates expire in", {"{{node}}": of("spegel_certificate_expiry_seconds")}, "s"),
        Chart("Certificates that are missing or not renewed", {"{{node}}": of("spegel_certificate_problem")}),
        Chart("Who leads", {"{{node}}": f"{of('spegel_leader')} > 0"}),
        Chart("Leaders that change too often to be followed", {"{{node}}": of("spegel_leader_flapping")}),
    ),
    "Ring": (
        Chart(
            "Members of the ring and of the catalog",
            {
                "ring, least": f"min({of('spegel_ring_members')}) + 1",
                "ring, most": f"max({of('spegel_ring_members')}) + 1",
                "catalog": f"max({of('spegel_catalog_members')})",
            },
        ),
        Chart("Missing members", {"{{node}}": of("spegel_ring_missing")}),
        Chart("Full member tables", {"{{node}}": of("spegel_ring_full")}),
        Chart(
            "Joins, restarts, splits",
            {
                "joined again": rises("spegel_ring_rejoins_total"),
                "routers replaced": rises("spegel_ring_restarts_total"),
                "parts joined": rises("spegel_ring_splits_total"),
            },
        ),
    ),
}  # fmt: skip


def named(expression: str) -> list[str]:
    """The metrics in an expression, in their order."""
    return list(dict.fromkeys(re.findall(r"\b((?:spegel|http|process)_[a-z_]+|up)\{", expression)))


def _description(*expressions: str) -> str:
    found = dict.fromkeys(_ABOUT[each] for expression in expressions for each in named(expression) if each in _ABOUT)
    return " ".join(found)


def _query(expression: str, legend: str, ref: str) -> Any:
    return prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref).datasource(_SOURCE)


def _colors() -> Any:
    return builders.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC)


def _figure(panel: Figure) -> stat.Panel:
    reduced = common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return (
        stat.Panel()
        .with_target(_query(panel.query, panel.legend, "A").instant())
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(reduced)
        .height(4)
        .span(panel.width)
    )


def _chart(panel: Chart) -> timeseries.Panel:
    made = timeseries.Panel().height(8).span(8).min(0).fill_opacity(8).show_points(common.VisibilityMode.NEVER)
    for number, (legend, expression) in enumerate(panel.queries.items()):
        made.with_target(_query(expression, legend, "ABCDEFGH"[number]).range())
    legends = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST)
    made.legend(legends.placement(common.LegendPlacement.BOTTOM).show_legend(True))
    return made.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))


def _all_of(name: str, label: str, query: str) -> builders.QueryVariable:
    """A variable with the values of a label, of which several may be chosen."""
    made = builders.QueryVariable(name).label(label).datasource(_SOURCE).query({"query": query, "refId": name})
    made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
    return made.current(VariableOption(text="All", value="$__all"))


def dashboard() -> str:
    """The text of docs/grafana/spegel-consul.json."""
    made = (
        builders.Dashboard("spegel-consul")
        .uid("spegel-consul")
        .tags(["spegel", "consul", "nomad"])
        .description("A peer-to-peer image mirror: what it serves, how fast, and whether the ring is whole.")
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_all_of("job", "Job", "label_values(spegel_ready, job)"))
        .with_variable(_all_of("node", "Node", 'label_values(spegel_ready{job=~"$job"}, node)'))
    )
    numbers = count(1)
    for title, panels in ROWS.items():
        made.with_row(builders.Row(title).id(next(numbers)))
        for panel in panels:
            if isinstance(panel, Figure):
                built, expressions = _figure(panel), (panel.query,)
            else:
                built, expressions = _chart(panel), tuple(panel.queries.values())
            built.id(next(numbers)).title(panel.title).description(_description(*expressions))
            made.with_panel(built.datasource(_SOURCE).unit(panel.unit).color_scheme(_colors()))
    return JSONEncoder(indent=2, ensure_ascii=False).encode(made.build()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(dashboard())
