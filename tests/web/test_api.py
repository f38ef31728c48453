"""What programs are told, by a real ring."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import urllib.parse
from pathlib import Path

import pytest
from lab.process import Process, until

pytestmark = pytest.mark.real


def test_status_tells_what_is_so(ring) -> None:
    status = ring.json("/api/status")
    assert status["ready"] is True
    assert status["reasons"] == []
    assert status["node"]["name"] == "n0"
    assert status["node"]["registry"] == f"http://{ring[0].ip}:5000"
    assert status["ring"]["coverage"] == 1.0
    assert status["ring"]["split"] is False
    assert status["content"]["images"] == 1
    assert status["content"]["bytes"] > 5 << 20
    assert status["content"]["keys"] >= len(ring.image.digests) + 1
    assert status["consul"]["staleness"] < 70
    leaders = [ring.json("/api/status", node)["leader"] for node in range(3)]
    assert [leader["me"] for leader in leaders].count(True) == 1
    assert len({leader["peer_id"] for leader in leaders}) == 1


def test_peers_are_named_and_timed(ring) -> None:
    peers = ring.json("/api/peers", 1)
    assert [peer["node"] for peer in peers] == ["n0", "n1", "n2"]
    assert [peer["state"] for peer in peers] == ["alive", "self", "alive"]
    assert sum(peer["leader"] for peer in peers) == 1
    n0 = peers[0]
    assert n0["registry"] == f"{ring[0].ip}:5000"
    assert n0["keys"] >= len(ring.image.digests)
    assert 0 < n0["rtt_ms"] < 2000
    assert n0["version"] == ring.json("/api/status")["node"]["version"]
    assert len({peer["at"] for peer in peers}) == 3
    assert all(0 <= peer["at"] < 1 for peer in peers)


def test_lookup_of_a_name_and_of_a_digest(ring) -> None:
    for key in (ring.image.name, ring.image.amd64.layers[0]):
        found = ring.json(f"/api/lookup?key={urllib.parse.quote(key)}", 2)
        assert [provider["node"] for provider in found["providers"]] == ["n0"], found
        assert found["own"] is False
        assert 0 < found["ms"] < 3500
    assert ring.json(f"/api/lookup?key={ring.image.name}")["own"] is True
    nobody = ring.json("/api/lookup?key=docker.io/library/nothing:v1")
    assert nobody["providers"] == []


HOSTILE = ["", "   ", "UPPER", '"><script>alert(1)</script>', "sha256:12", "a" * 10_000, "x@sha256:0", "\x00", "🦄"]


@pytest.mark.parametrize("text", HOSTILE)
def test_bad_names_are_one_line(ring, text: str) -> None:
    for method, path in (("GET", "/api/lookup?key="), ("POST", "/api/measure?image=")):
        response = ring.get(path + urllib.parse.quote(text), method=method)
        assert response.status == 400
        assert response.headers["content-type"] == "application/json"
        message = json.loads(response.body)["error"]
        assert message
        assert "\n" not in message
        assert len(message) < 300


def test_measure_pulls_all_of_it_and_keeps_nothing(ring) -> None:
    measured = ring.json(f"/api/measure?image={ring.image.name}", 2, method="POST")
    assert measured["problem"] is None
    assert {piece["digest"] for piece in measured["pieces"]} == ring.image.digests
    assert all(piece["verified"] and piece["source_node"] == "n0" for piece in measured["pieces"])
    assert [piece["what"] for piece in measured["pieces"]][:3] == ["index", "manifest", "config"]
    for piece in measured["pieces"]:
        assert 0 <= piece["started_ms"] <= piece["first_byte_ms"] <= piece["done_ms"]
    assert ring.json("/api/status", 2)["content"]["images"] == 0
    own = ring.json(f"/api/measure?image={ring.image.name}", 0, method="POST")
    assert {piece["source"] for piece in own["pieces"]} == {"own"}


def test_measure_of_what_nobody_has(ring) -> None:
    measured = ring.json("/api/measure?image=docker.io/library/nothing:v1", 2, method="POST")
    assert measured["missing"] is True
    assert measured["problem"] == "no node has docker.io/library/nothing:v1"


def test_measure_is_told_as_it_goes(ring) -> None:
    response = ring.get(
        f"/api/measure?image={ring.image.name}", 1, method="POST", headers={"accept": "application/x-ndjson"}
    )
    lines = [json.loads(line) for line in response.body.splitlines()]
    assert lines[-1]["done"] is True
    assert lines[-1]["bytes"] == sum(piece["size"] for piece in lines[-1]["pieces"])
    assert len(lines[-1]["pieces"]) == len(ring.image.digests)


def test_a_page_of_another_site_can_not_make_work(ring) -> None:
    response = ring.get(
        f"/api/measure?image={ring.image.name}", method="POST", headers={"sec-fetch-site": "cross-site"}
    )
    assert response.status == 403


def test_health_gives_reasons_in_json(ring) -> None:
    for port in (5000, 9090):
        assert ring[0].request("/readyz", port=port).body == b"ok\n"
        assert ring[0].request("/livez", port=port).body == b"ok\n"
        response = ring[0].request("/readyz", port=port, headers={"accept": "application/json"})
        assert json.loads(response.body) == {"ready": True, "reasons": [], "warnings": []}
        assert json.loads(ring[0].request("/livez?format=json", port=port).body) == {"alive": True}


def second(ring, name: str, layout: Path, *flags: str, consul: str = "") -> Process:
    """Another sidecar on n2, on ports 7000 to 7002."""
    argv = [sys.executable, "-m", "spegel_consul", "registry", f"--layout-path={layout}", *flags]
    argv += ["--registry-addr=:7000", "--router-addr=:7001", "--metrics-addr=:7002", f"--node-name={name}"]
    directory = ring.lab.dir / name
    argv.append(f"--data-dir={directory}")
    return ring[2].netns.start(name, argv, log_path=ring.lab.dir / f"{name}.log", env={"CONSUL_HTTP_ADDR": consul})


def readiness(ring) -> tuple[int, dict[str, list[str]]]:
    try:
        response = ring[2].request("/readyz?format=json", port=7002)
    except OSError:
        return 0, {}
    return response.status, json.loads(response.body)


def test_what_is_wrong_with_the_store_is_a_reason_and_with_a_lone_node_nothing(ring) -> None:
    layout = ring.lab.dir / "late"
    lone = second(ring, "lone", layout, "--bootstrap-kind=static", f"--static-bootstrap-peers={ring[2].ip}:7001")
    try:
        lone.until(lambda: readiness(ring)[0] == 503, timeout=20, what="it says that it has no store")
        assert str(layout) in readiness(ring)[1]["reasons"][0]
        shutil.copytree(ring.image.layout, layout)
        lone.until(lambda: readiness(ring)[0] == 200, timeout=20, what="it is ready without anybody else")
        assert readiness(ring)[1] == {"ready": True, "reasons": [], "warnings": []}
    finally:
        lone.stop()


def test_without_consul_a_node_is_ready_and_warns(ring) -> None:
    without = second(ring, "without", ring.image.layout, consul="127.0.0.1:1")
    try:
        without.until(lambda: readiness(ring)[1].get("warnings"), timeout=20, what="it warns")
        status, document = readiness(ring)
        assert (status, document["reasons"]) == (200, [])
        assert any("127.0.0.1:1" in warning for warning in document["warnings"])
    finally:
        without.stop()


def test_level_by_signal_and_by_request(ring) -> None:
    process = ring[1].sidecar.process
    assert ring.json("/api/log-level", 1) == {"level": "info", "configured": "info"}
    process.signal(signal.SIGUSR1)
    until(lambda: ring.json("/api/log-level", 1)["level"] == "debug", timeout=5, what="SIGUSR1 turns debug on")
    process.signal(signal.SIGUSR1)
    until(lambda: ring.json("/api/log-level", 1)["level"] == "info", timeout=5, what="and off again")
    put = ring[1].netns.request("PUT", "127.0.0.1", 9090, "/api/log-level", body=b"debug")
    assert json.loads(put.body)["level"] == "debug"
    put = ring[1].netns.request("PUT", ring[1].ip, 9090, "/api/log-level", body=b"loud")
    assert put.status == 400
    assert "must be one of" in json.loads(put.body)["error"]
    put = ring[0].netns.request("PUT", ring[1].ip, 9090, "/api/log-level", body=b"debug")
    assert put.status == 403
    ring[1].netns.request("PUT", "127.0.0.1", 9090, "/api/log-level", body=b"info")
    assert ring.json("/api/log-level", 1)["level"] == "info"


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_request_is_found_in_the_logs_of_both_nodes_by_its_id(ring) -> None:
    def set_level(level: bytes) -> None:
        for node in (0, 2):
            put = ring[node].netns.request("PUT", "127.0.0.1", 9090, "/api/log-level", body=level)
            assert put.status == 200

    path = f"/v2/{ring.image.repository}/blobs/{ring.image.amd64.config}?ns={ring.image.registry}"
    set_level(b"debug")
    try:
        identity = {"X-Request-Id": "find-me", "traceparent": TRACE}
        assert ring[2].request(path, headers=identity).status == 200
        until(lambda: found(ring, 2, "mirrored"), timeout=10, what="the mirroring node says so")
        (line,) = found(ring, 2, "mirrored")
        assert (line["outcome"], line["kind"], line["peer"]) == ("hit", "blobs", f"{ring[0].ip}:5000")
        assert line["bytes"] == ring.image.blob(ring.image.amd64.config).stat().st_size
        (asked,) = found(ring, 0, "asked by a peer")
        assert asked["key"] == ring.image.amd64.config
        assert (line["traceparent"], asked["traceparent"]) == (TRACE, TRACE)
    finally:
        set_level(b"info")
    ring[2].request(path, headers={"X-Request-Id": "find-me"})
    assert len(found(ring, 2, "mirrored")) == 1, "not at info"


def found(ring, node: int, event: str) -> list[dict[str, object]]:
    events = ring.json("/api/events", node)["events"]
    return [each for each in events if each["event"] == event and each.get("request_id") == "find-me"]


def test_events_are_kept_and_waited_for(ring) -> None:
    first = ring.json("/api/events", 2)
    assert any(event["event"] == "started" for event in first["events"])
    assert [event["number"] for event in first["events"]] == list(range(1, first["last"] + 1))
    began = time.monotonic()
    assert ring.json(f"/api/events?since={first['last']}&wait=0.3", 2)["events"] == []
    assert time.monotonic() - began >= 0.29
    assert ring.get("/api/events?since=x").status == 400
    later = ring.json(f"/api/events?since={first['last']}&life=another", 2)
    assert [event["number"] for event in later["events"]] == list(range(1, later["last"] + 1))


def test_tasks_are_for_the_machine_itself(ring) -> None:
    tree = ring[1].netns.request("GET", "127.0.0.1", 9090, "/debug/tasks").body.decode()
    assert "watch_the_loop" in tree
    assert "metric_readings.py:" in tree
    assert ring.get("/debug/tasks", 0, to=1).status == 403
