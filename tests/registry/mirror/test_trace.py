"""What is kept of mirrored requests, and what keeping it costs."""

from __future__ import annotations

import time
import timeit
from dataclasses import dataclass

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.trace import CUT, HIT, MISS, Trace, Traces

DIGEST = Digest.of(b"layer")
LAYER = Reference("docker.io", "library/app", digest=DIGEST)


@dataclass
class Left:
    left: int


def test_a_request_that_is_served() -> None:
    traces, before = Traces(), round(time.time(), 3)
    trace = traces.begin(LAYER, DIGEST, "blobs", "GET")
    assert list(traces.live.values()) == [trace]
    began = trace.started
    trace.looked_up, trace.asked, trace.connected, trace.first_byte = (
        began + 0.001,
        began + 0.002,
        began + 0.003,
        began + 0.004,
    )
    trace.peer, trace.size = "10.0.0.7:5000", 1000
    trace.progress = Left(400)
    live = trace.to_json(began + 0.005)
    assert (live["bytes"], live["size"], live["done_ms"], live["outcome"]) == (600, 1000, None, None)
    assert live["elapsed_ms"] == 5.0
    assert live["bytes_per_second"] == 600_000
    trace.progress.left = 0
    traces.end(trace, HIT)
    assert traces.live == {}
    assert trace.progress is None, "it would keep sockets and buffers alive"
    over = traces.over[-1].to_json()
    assert (over["bytes"], over["outcome"], over["peer"], over["registry"]) == (
        1000,
        "hit",
        "10.0.0.7:5000",
        "docker.io",
    )
    assert [over[name] for name in ("lookup_ms", "asked_ms", "connect_ms", "first_byte_ms")] == [1.0, 2.0, 3.0, 4.0]
    assert over["done_ms"] == over["elapsed_ms"]
    assert before <= float(str(over["began"])) <= round(time.time(), 3)


def test_a_cut_keeps_how_far_it_came() -> None:
    traces = Traces()
    trace = traces.begin(LAYER, DIGEST, "blobs", "GET")
    trace.size, trace.progress = 1000, Left(999)
    traces.end(trace, CUT, "nobody could go on")
    assert trace.to_json()["bytes"] == 1
    assert trace.to_json()["error"] == "nobody could go on"


def test_what_is_kept_has_an_end_and_the_oldest_go() -> None:
    traces = Traces(kept=3)
    for _ in range(10):
        traces.end(traces.begin(LAYER, DIGEST, "manifests", "HEAD"), MISS)
    assert [trace.number for trace in traces.over] == [8, 9, 10]


def test_somebody_may_hear_of_each_end() -> None:
    heard: list[Trace] = []
    traces = Traces()
    traces.on_end = heard.append
    trace = traces.begin(LAYER, DIGEST, "blobs", "GET")
    trace.trace_headers = (("x-request-id", "abc"),)
    traces.end(trace, HIT)
    assert heard == [trace]
    assert trace.request_id == "abc"


def test_a_whole_life_costs_next_to_nothing() -> None:
    """2 us are allowed on a machine that is ours; a loaded one gets ten times as much before this fails."""
    traces, progress = Traces(), Left(0)

    def live() -> None:
        trace = traces.begin(LAYER, DIGEST, "blobs", "GET")
        trace.looked_up = trace.asked = trace.connected = trace.first_byte = 1.0
        trace.peer, trace.size, trace.progress = "10.0.0.7:5000", 1000, progress
        traces.end(trace, HIT)

    assert min(timeit.repeat(live, number=2000, repeat=20)) / 2000 < 20e-6
