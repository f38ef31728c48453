"""What the documents say of speed is what the renderer makes of the runs that are kept, and of nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import beside, kept, readme, workload
from bench.cold import ColdSample
from bench.figures import Results
from bench.floors import floors
from bench.lifecycle import Memory
from bench.programs import GO, GO_VERIFYING, NGINX, SPEGEL, SPEGEL_UNVERIFIED
from bench.rounds import Sample
from bench.workload import MANIFESTS, MIRROR, OWN

MACHINE = {
    "cores": 2,
    "python": "3.11.2",
    "rounds": 3,
    "quick": False,
    "versions": {"go": "go version go1.26.8 linux/amd64", "nginx": "nginx version: nginx/1.22.1"},
}
RATES = {
    OWN: {SPEGEL: 3.0, GO: 3.2, NGINX: 4.0},
    MIRROR: {SPEGEL: 1.0, SPEGEL_UNVERIFIED: 4.0, GO: 2.0, GO_VERIFYING: 0.5, NGINX: 2.5},
    MANIFESTS: {SPEGEL: 9.0, GO: 3.0, NGINX: 6.0},
}
"""GiB/s; of answers 1000 in a second are one."""

CPU = {SPEGEL: 0.8, SPEGEL_UNVERIFIED: 0.25, GO: 0.4, GO_VERIFYING: 1.5, NGINX: 0.3}


def results() -> Results:
    """A single blob of 1 GiB misses its floors, ranges and the cold disk were not measured, and all else is well."""
    found = Results(own_memory=Memory(94.6, 0.5, 2000.0), starts=[0.7])
    for load in workload.full(3).workloads:
        for server, rate in RATES.get(load.table, {}).items():
            if load.label == "GET 1 GiB x1" and load.table == OWN and server == SPEGEL:
                rate = 2.8
            size, requests = (int(rate * 2**30), 7) if load.is_bulk else (1000, int(rate * 1000))
            cpu = round(CPU[server] * rate, 3)
            found.samples += [
                Sample(load.table, load.label, server, each, load.is_bulk, 1.0, requests, size, 1, 2, 0, cpu, 0.1, 0.0)
                for each in range(3)
            ]
    return found


def said(found: Results, **machine: object) -> str:
    return re.sub(r"\s+", " ", readme.section(MACHINE | machine, found))


def test_the_documents_say_what_the_kept_runs_say() -> None:
    machine, results = kept.load(readme.KEPT)
    found = beside.load()
    assert readme.parted(readme.README.read_text())[1] == readme.summary(machine, results, found)
    assert readme.parted(readme.PAGE.read_text())[1] == readme.page(machine, results, found)


def measured(name: str, load: float = 1.0) -> beside.Measurement:
    ways = (beside.Way("follow on", 1.5, 3.0), beside.Way("Spegel", 2.0, 2.0))
    return beside.Measurement(beside.MISS, name, load, ways)


def test_readme_has_four_lines_with_the_figures_of_both_runs() -> None:
    lines = readme.summary(
        MACHINE, results(), [measured("6 nodes, 2 busy processes"), measured("6 nodes")]
    ).splitlines()
    assert len(lines) == 4
    assert lines[0] == "- Blobs that the node has leave at 0.9 times the rate of Go's `net/http`, from 1 MiB to 1 GiB."
    assert lines[2] == "- Beside Spegel: a miss (6 nodes) takes 0.75 times its time, 1.50 times its CPU."
    assert lines[3].startswith("- 2 of the benchmark's 41 floors did not hold, and 5 could not be measured. ")
    assert "- Beside Spegel: not measured." in readme.summary(MACHINE, results(), [])


def test_what_was_measured_beside_spegel_is_a_table() -> None:
    text = readme.page(MACHINE, results(), [measured("6 nodes", load=9.0), measured("25 nodes")])
    assert text.partition("### Beside Spegel\n\n")[2].splitlines() == [
        "| a miss in a ring | | ms | x Spegel | CPU, ms | x Spegel |",
        "|---|---|---|---|---|---|",
        "| 6 nodes (load 9) | follow on | 1.50 | 0.75 | 3.00 | 1.50 |",
        "|  | Spegel | 2.00 | 1.00 | 2.00 | 1.00 |",
        "| 25 nodes | follow on | 1.50 | 0.75 | 3.00 | 1.50 |",
        "|  | Spegel | 2.00 | 1.00 | 2.00 | 1.00 |",
    ]
    assert "Beside" not in readme.page(MACHINE, results(), [])


def test_a_measurement_replaces_the_one_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "beside.json"
    for time in (1.0, 2.0):
        beside.keep(beside.MISS, "6 nodes", [beside.Way("Spegel", time, 1.0)], file)
    beside.keep(beside.PULL, "1 MiB", [beside.Way("default", 3.0, 1.0)], file)
    found = beside.load(file)
    assert [(each.name, each.ways[0].time) for each in found] == [("6 nodes", 2.0), ("1 MiB", 3.0)]
    assert found[0].ratio("Spegel") == (1.0, 1.0)
    assert found[1].ratio("default") is None


def test_the_table_has_ratios_of_medians() -> None:
    lines = readme.section(MACHINE, results()).splitlines()
    assert [line for line in lines if line.startswith("|")] == [
        "| | to Go, 100 MiB and 1 GiB | 1 MiB | to nginx, 100 MiB and 1 GiB | 1 MiB |",
        "|---|---|---|---|---|",
        "| blobs that the node has | 0.9 | 0.9 | 0.7 to 0.8 | 0.8 |",
        "| a neighbour's blobs, not verified (`--verify=off`) | 2.0 | 2.0 | 1.6 | 1.6 |",
        "| a neighbour's blobs, verified (default), to a Go that verifies | 2.0 | 2.0 |  |  |",
        "| the same, to a Go that doesn't | 0.5 | 0.5 | 0.4 | 0.4 |",
    ]
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


def test_sentences_have_versions_cores_rounds_and_figures() -> None:
    text = said(results())
    assert "From `python -m bench --rounds 3` on a machine with 2 cores" in text
    assert "`net/http` (1.26.8), nginx is 1.22.1, Python 3.11.2. " in text
    assert "medians of 3 rounds, over 1 to 16 transfers at once" in text
    assert "on 16 connections: 3 times Go, 1.5 times nginx. Ranges of 8 MiB: not measured." in text
    assert (
        "costs 0.25 s of CPU not verified and 0.80 s verified (Go 0.40 s, a Go that verifies 1.50 s, nginx 0.30 s)."
        in text
    )
    assert "The process has 95 MiB." in text


def test_a_run_of_another_length_says_so() -> None:
    text = said(results(), quick=True)
    assert "From `python -m bench --quick`" in text
    assert "medians of 2 rounds, over 1 to 4 transfers" in text
    assert "| | to Go, 100 MiB | 1 MiB |" in text


def test_floors_that_did_not_hold_and_those_not_measured_are_named() -> None:
    text = said(results())
    assert (
        "Of the benchmark's 41 floors 2 did not hold in this run: own blobs: GET 1 GiB x1 0.88 x go (limit 0.9);"
        in text
    )
    assert "own blobs: GET 1 GiB x1 0.70 x nginx (limit 0.75)." in text
    assert "could not be measured: " in text
    assert "cold 1 GiB: loop lateness, p99 ms; " in text


def test_a_reason_is_given_only_for_what_was_found() -> None:
    reason = "because SHA-256 alone costs more"
    found = results()
    assert reason in said(found)
    found.samples = [
        replace(sample, bytes=sample.bytes * 4) if sample.table == MIRROR and sample.server == SPEGEL else sample
        for sample in found.samples
    ]
    assert reason not in said(found)


def test_the_longest_wait_of_any_round_is_at_most() -> None:
    found = results()
    for server, late in ((SPEGEL, 2.2), (GO, 4.1)):
        found.cold += [ColdSample(server, each, 1.0, 0.5, 0.1, late * each, 0.0) for each in range(3)]
    assert "1 GiB from a cold disk: 1 times Go; meanwhile other requests wait 4 ms at most (Go: 8 ms)." in said(found)


def test_a_machine_that_was_busy_is_named() -> None:
    found = results()
    assert "were taken while" not in said(found)
    found.samples[0] = replace(found.samples[0], other=0.9)
    assert f"1 of {len(found.samples)} samples were taken while something else kept more than 0.35 cores" in said(found)


def test_a_run_is_the_same_after_it_was_kept(tmp_path: Path) -> None:
    found = results()
    found.cold.append(ColdSample(SPEGEL, 0, 1.0, 0.5, 0.1, 2.0, 0.0))
    text = kept.document(MACHINE, found, floors(workload.full(3), found))
    kept.save(tmp_path / "run.json", text)
    assert kept.load(tmp_path / "run.json") == (MACHINE, found)
    assert json.loads(text)["floors"][0]["verdict"] == "ok"


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("# a\n\n<!-- bench: begin -->\nold\n<!-- bench: end -->\n\nz\n")
    readme.write(file, "new\n")
    assert file.read_text() == "# a\n\n<!-- bench: begin -->\nnew\n<!-- bench: end -->\n\nz\n"


@pytest.mark.parametrize("text", ["", "<!-- bench: begin -->\n", "<!-- bench: end -->\n<!-- bench: begin -->\n"])
def test_without_markers_nothing_is_written(tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(readme.NoPlace):
        readme.write(file, "new\n")
    assert file.read_text() == text
