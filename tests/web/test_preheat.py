"""Preheats of this node and of the cluster: who may ask, what is refused, and what becomes of each node's answer."""

from __future__ import annotations

import json

import pytest
import trio
from web.test_node import node

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_CONFIG, OCI_MANIFEST
from spegel_consul.oci.reference import Reference
from spegel_consul.runtimes.pulls import CantPull
from spegel_consul.web import report_stream
from spegel_consul.web.node_views import PreheatRules
from spegel_consul.web.preheat import own_preheat
from spegel_consul.web.preheat.preheat_report import ClusterReport, NodePreheat, State
from spegel_consul.web.web_app import build_app
from tests.web.preheat_runtimes import APP, CLUSTER, OWN, Runtime, Runtimes, at_once, last_states, lines, ready, refused

__all__ = ["at_once"]


async def test_the_runtimes_pull_one_after_the_other() -> None:
    first, second = Runtime("docker"), Runtime("containerd default")
    async with lines(ready(first, second)) as found:
        assert first.pulled == second.pulled == [APP]
        assert found[-1]["done"] is True
        assert found[-1]["state"] == "done"
        assert [(each["runtime"], each["state"], each["bytes"]) for each in found[-1]["runtimes"]] == [
            ("docker", "done", 7),
            ("containerd default", "done", 7),
        ]


@pytest.mark.parametrize(
    ("failures", "state", "reason", "missing"),
    [
        ([None, CantPull("old", left_out=True)], "done", None, False),
        ([CantPull("gone", missing=True)], "failed", "gone", True),
        ([CantPull("gone", missing=True), CantPull("disk is full")], "failed", "gone", False),
        ([None, CantPull("disk is full")], "failed", "disk is full", False),
        ([CantPull("old", left_out=True)], "failed", "old", False),
    ],
)
async def test_the_verdict_on_a_node(
    failures: list[CantPull | None], state: str, reason: str | None, missing: bool
) -> None:
    runtimes = [Runtime(str(number), failure) for number, failure in enumerate(failures)]
    async with lines(ready(*runtimes)) as found:
        last = found[-1]
        assert (last["state"], last["reason"], last["missing"], last["done"]) == (state, reason, missing, True)


async def test_an_image_that_only_this_node_has_is_there() -> None:
    config = {"mediaType": OCI_CONFIG, "digest": Digest.of(b"{}"), "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}).encode()
    for runtimes, state in (([Runtime()], "done"), ([Runtime("a"), Runtime("b")], "failed")):
        made = ready(*runtimes)
        made.store.add_content(b"{}")  # type: ignore[attr-defined]
        made.store.add_image(APP, manifest)  # type: ignore[attr-defined]
        for runtime in runtimes:
            runtime.failure = CantPull("gone", missing=True)
        async with lines(made) as found:
            assert found[-1]["state"] == state
            [*_, last] = found[-1]["runtimes"]
            assert (last["state"], last["bytes"]) == ((state, len(manifest) + 2) if state == "done" else (state, 7))


async def test_a_defect_and_an_unknown_runtime_are_reasons() -> None:
    async with lines(ready(Runtime(failure=ZeroDivisionError("cannot be")))) as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "ZeroDivisionError: cannot be")
    made = ready()
    made.preheat = PreheatRules(Runtimes(CantPull("no containerd")), lambda _: True, catalog_only=False)
    async with lines(made) as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "no containerd")


async def test_a_preheat_ends_in_time() -> None:
    made, runtime = ready(), Runtime()
    made.preheat = PreheatRules(Runtimes([runtime]), lambda _: True, catalog_only=False)
    async with lines(made, f"{OWN}&within=2") as found:
        assert (found[-1]["state"], found[-1]["reason"]) == ("failed", "given up after 2 s")
        assert found[-1]["runtimes"][0]["state"] == "failed"
        assert len(found) >= 3, "a line each second"
        assert runtime.cancelled.is_set()


async def test_a_preheat_is_cancelled_when_its_asker_goes_away() -> None:
    runtime, report = Runtime(), own_preheat.OwnReport()
    own = own_preheat.OwnPreheats(PreheatRules(Runtimes([runtime]), lambda _: True, False), node().store)
    reference = Reference.parse(APP)
    async with trio.open_nursery() as nursery:
        stream = report_stream.follow(lambda: own.run(reference, 60, report), report, nursery)
        with trio.fail_after(20):
            await anext(stream)
            await runtime.began.wait()
            with pytest.raises(own_preheat.Busy):
                own.check(reference)
            await stream.aclose()  # type: ignore[attr-defined]
            await runtime.cancelled.wait()
    own.check(reference)


async def test_one_of_an_image_and_two_in_all() -> None:
    runtime = Runtime()
    own = own_preheat.OwnPreheats(PreheatRules(Runtimes([runtime]), lambda _: True, False), node().store)
    names = [Reference.parse(f"app:v{number}") for number in range(3)]
    async with trio.open_nursery() as nursery:
        for name in names[:2]:
            nursery.start_soon(own.run, name, 60, own_preheat.OwnReport())
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(own_preheat.Busy, match="for another preheat"):
            own.check(names[0])
        with pytest.raises(own_preheat.Busy, match="2 other preheats"):
            own.check(names[2])
        late = own_preheat.OwnReport()
        await own.run(names[2], 60, late)
        assert late.now.state is State.FAILED
        assert "2 other preheats" in (late.now.reason or "")
        runtime.go.set()
    own.check(names[2])


@pytest.mark.parametrize("path", ["/api/preheat", "/api/preheat/own"])
@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("", 400, "name an image"),
        ("?image=", 400, "name an image"),
        ("?image=app:v%201", 400, "tag"),
        ("?image=App%20X", 400, "not valid"),
        ("?image=../../etc", 400, "not valid"),
        ("?image=sha256:" + "0" * 64, 400, "a digest alone"),
        ("?image=app@sha256:12", 400, "digest"),
        ("?image=" + "a" * 5000, 400, "5000 characters"),
        ("?image=app:v1&within=0", 400, "within"),
        ("?image=app:v1&within=nan", 400, "within"),
        ("?image=app:v1&within=1e9", 400, "within"),
        ("?image=quay.io/team/app:v1", 403, "--mirrored-registries"),
        ("?image=app:secret", 403, "--registry-filters"),
    ],
)
async def test_bad_input_is_one_line(path: str, query: str, status: int, reason: str) -> None:
    found, message = await refused(ready(), path + query)
    assert found == status
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("count", ["0", "-1", "x", "1e3", "9999999", ""])
async def test_a_bad_number_of_nodes(count: str) -> None:
    assert await refused(ready(), f"{CLUSTER}&nodes={count}") == (
        400,
        "nodes must be a number greater than zero, or all",
    )


async def test_a_preheat_is_no_get() -> None:
    response = await build_app(ready()).test_client().get("/api/preheat", headers={"host": "10.0.0.1"})
    assert response.status_code == 405


def test_a_report_that_fails_ends_all_nodes() -> None:
    report = ClusterReport(APP, [("a", "n1"), ("b", "n2")])
    report.set("a", NodePreheat(state=State.DONE))
    report.failed("cannot be")
    [document] = report.documents()
    assert (document["problem"], document["done"]) == ("cannot be", True)
    assert last_states([document]) == {"n1": ("done", None), "n2": ("failed", "the preheat ended before")}
