"""The metrics, their reference, the alerts, and the dashboard and the scrape configuration, with a real Prometheus."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import parts
from lab.process import until
from lab.prometheus import Prometheus
from web.dashboard import expressions, filled, named

from spegel_consul.metrics.sidecar_metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = runpy.run_path(str(DOCS.parent / ".ci/metrics_reference.py"))

SPEGELS = {
    "spegel_mirror_requests_total": ("registry", "cache"),
    "spegel_mirror_last_success_timestamp_seconds": (),
    "spegel_resolve_duration_seconds": ("router",),
    "spegel_advertised_image_tags": ("registry",),
    "spegel_advertised_image_digests": ("registry",),
    "spegel_advertised_content_digests": ("registry",),
    "http_request_duration_seconds": ("handler", "method", "code"),
    "http_response_size_bytes": ("handler", "method", "code"),
    "http_requests_inflight": ("handler",),
}
"""pkg/metrics/metrics.go and pkg/httpx/metrics.go of Spegel."""


def test_spegels_names_and_labels_are_all_there() -> None:
    labels = Metrics().labels()
    assert {name: labels[name] for name in SPEGELS} == SPEGELS


def test_the_reference_is_fresh() -> None:
    assert (DOCS / "metrics.md").read_text() == REFERENCE["reference"](), (
        "stale: python .ci/metrics_reference.py >docs/metrics.md"
    )


QUIET_AND_FIRING = {
    "SpegelDown": ('up{job="spegel-consul"}', "1x180", "0x180"),
    "SpegelNotReady": ("spegel_ready", "1x180", "0x180"),
    "SpegelRingSplit": ('spegel_ring_split{instance="n1"}', "0x180", "1x180"),
    "SpegelRingFull": ('spegel_ring_full{instance="n1"}', "0x180", "1x180"),
    "SpegelNotOneLeader": ('spegel_leader{instance="n1"}', "1x180", "0x180"),
    "SpegelWrongBytes": ("spegel_verification_failures_total", "3x180", "0+1x180"),
    "SpegelTransfersCut": ("spegel_transfers_cut_total", "0+2x180", "0+60x180"),
    "SpegelNoKeepers": ('spegel_claims_total{verdict="none"}', "0+2x180", "0+60x180"),
    "SpegelOnlyCopies": ("spegel_images_only_here", "0x180", "2x180"),
    "SpegelTagsDiffer": ('spegel_tag_choices_total{choice="newest"}', "7x180", "0+1x180"),
    "SpegelConsulAway": ("spegel_consul_staleness_seconds", "60x180", "0+60x180"),
    "SpegelCertificateEnds": ("spegel_certificate_problem", "0x180", "1x180"),
    "SpegelLoopLate": ('spegel_loop_lateness_seconds_bucket{le="%s"}', "0+60x180", "0x180"),
}
"""For each alert a series, its values a minute apart without cause for the alert, and with."""

BESIDE = {"SpegelNotOneLeader": ('spegel_leader{datacenter="dc2"}', "1x180")}
"""Another series, in both cases: a second datacenter, which has a leader of its own."""


def test_each_alert_names_a_metric_that_exists() -> None:
    assert set(QUIET_AND_FIRING) == {rule["alert"] for rule in REFERENCE["alerts"]()}
    for rule in REFERENCE["alerts"]():
        assert named(rule["expr"]) <= REFERENCE["names"]() | {"up"}, rule["alert"]


def test_each_alert_leads_to_a_section_about_it() -> None:
    sections = re.findall(r"^## (.*)$", (DOCS / "alerts.md").read_text(), re.M)
    assert sections == [rule["alert"] for rule in REFERENCE["alerts"]()]
    for rule in REFERENCE["alerts"]():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_each_alert_says_what_it_means_for_pulls_and_what_to_do_first() -> None:
    for rule in REFERENCE["alerts"]():
        description = rule["annotations"]["description"]
        assert re.search(r"\b[Pp]ulls?\b", description), rule["alert"]
        assert re.search(r"\. First |can wait until the day", description), rule["alert"]
        alone = re.match(r"(sum|max by \(datacenter)", rule["expr"])
        assert ("$labels.instance" in description) == (alone is None), rule["alert"]


@pytest.mark.real
def test_each_alert_fires_for_its_cause_alone(tmp_path: Path) -> None:
    tests = []
    for rule in REFERENCE["alerts"]():
        series, *cases = QUIET_AND_FIRING[rule["alert"]]
        for fires, values in zip((False, True), cases, strict=True):
            inputs = [{"series": series, "values": values}]
            if beside := BESIDE.get(rule["alert"]):
                inputs.append({"series": beside[0], "values": beside[1]})
            if "%s" in series:
                inputs = [{"series": series % "0.1", "values": values}]
                inputs += [{"series": series % edge, "values": "0+60x180"} for edge in ("1", "+Inf")]
            tests.append(
                {
                    "interval": "1m",
                    "input_series": inputs,
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}})',
                            "eval_time": "175m",
                            "exp_samples": [{"value": 1}] if fires else [],
                        }
                    ],
                }
            )
    file = tmp_path / "alerts_test.yml"
    file.write_text(json.dumps({"rule_files": [str(DOCS / "alerts.yml")], "tests": tests}))
    promtool = parts.prometheus().with_name("promtool")
    for command in (["check", "rules", DOCS / "alerts.yml"], ["test", "rules", file]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(ring) -> Iterator[Prometheus]:
    """The configuration of the documentation, but for the interval."""
    with Prometheus(ring[0].netns, ring.lab.dir / "prometheus", (DOCS / "prometheus.yml").read_text()) as made:
        made.await_scrapes(3)
        yield made


@pytest.mark.real
def test_all_targets_are_up_and_tell_what_is_so(ring, prometheus) -> None:
    until(
        lambda: [target["health"] for target in prometheus.targets()] == ["up"] * 3,
        timeout=20,
        what="all targets are up",
    )
    assert {target["labels"]["job"] for target in prometheus.targets()} == {"spegel-consul"}
    assert set(prometheus.values("spegel_ready")) == {"n0", "n1", "n2"}
    assert prometheus.values("spegel_ring_members") == {"n0": 2, "n1": 2, "n2": 2}
    assert prometheus.values("spegel_ring_split") == {"n0": 0, "n1": 0, "n2": 0}
    assert sum(prometheus.values("spegel_leader").values()) == 1
    assert prometheus.values("sum by (datacenter) (spegel_leader)", by="datacenter") == {"dc1": 1}, (
        "as the alert has it"
    )
    assert prometheus.values("spegel_advertised_image_tags") == {"n0": 1}
    assert prometheus.values("spegel_advertised_content_digests")["n0"] >= len(ring.image.digests)
    assert prometheus.values("spegel_consul_staleness_seconds")["n1"] < 70


@pytest.mark.real
def test_handlers_are_called_as_spegel_calls_them_and_made_up_paths_are_not_counted(ring, prometheus) -> None:
    path = f"/v2/{ring.image.repository}/blobs/{ring.image.amd64.config}?ns={ring.image.registry}"
    for each in (path, "/v2/", "/readyz", "/livez", "/made/up", "/v2/made-up", "/v2/"):
        ring[2].request(each)
    text = ring.get("/metrics", 2).body.decode()
    answers = re.findall(r"^http_request_duration_seconds_count\{(.*?)\}", text, re.M)
    assert {re.findall(r'handler="(.*?)"', labels)[0] for labels in answers} == {"/v2/*", "/readyz", "/livez"}
    assert set(re.findall(r'^http_requests_inflight\{handler="(.*?)"\}', text, re.M)) == {"/v2/*", "/readyz", "/livez"}


@pytest.mark.real
def test_prometheus_understands_each_query_of_the_dashboard(ring, prometheus) -> None:
    assert ring.pull(ring.image.amd64.layers[1]).status == 200
    answered = 0
    for expression in expressions():
        answered += bool(prometheus.ask("/api/v1/query", query=filled(expression))["result"])
    assert answered > len(expressions()) * 0.6, "most of them have data in a small ring that works"
