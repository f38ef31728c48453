# What the documents say of speed is made from a run and its floors, sentences with figures included, so that no figure
# can outlive the run that it came from.  The run is kept in results.json, what was measured beside Spegel in
# beside.json, and a test compares both with the documents.

"""Write README's section "How fast it is", and docs/performance.md, from the runs that are kept: python -m bench.readme

`python -m bench --keep` measures first, and keeps what it measured.
"""

from __future__ import annotations

import argparse
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import beside, kept, workload
from bench.figures import Results, Spread
from bench.floors import Verdict, floors
from bench.programs import GO, GO_SPEGEL, GO_VERIFYING, NGINX, SPEGEL, SPEGEL_UNVERIFIED
from bench.tools import HERE
from bench.workload import MANIFESTS, MIRROR, OWN, RANGES, Plan

KEPT = HERE / "results.json"
README, PAGE = HERE.parent / "README.md", HERE.parent / "docs/performance.md"
_BEGIN, _END = "<!-- bench: begin -->\n", "<!-- bench: end -->\n"
_WIDTH = 120
_SMALL = "1 MiB"
_ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("blobs that the node has", OWN, SPEGEL, (GO, NGINX)),
    ("a neighbour's blobs, not verified (`--verify=off`)", MIRROR, SPEGEL_UNVERIFIED, (GO, NGINX)),
    ("a neighbour's blobs, verified (default), to a Go that verifies", MIRROR, SPEGEL, (GO_VERIFYING,)),
    ("the same, to a Go that doesn't", MIRROR, SPEGEL, (GO, NGINX)),
)
_SUMMARY = ((OWN, GO), (MIRROR, GO_VERIFYING))
_NAMES = {GO: "Go", NGINX: "nginx", GO_SPEGEL: "a Go that asks containerd as Spegel does"}


class NoPlace(Exception):
    """The document has no markers, or not in this order."""


def main() -> None:
    """Write both documents."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=KEPT, help="a run that was kept (default: bench/results.json)")
    options = parser.parse_args()
    try:
        write_all(options.json)
    except (OSError, NoPlace) as exc:
        parser.error(str(exc))
    except (KeyError, TypeError, ValueError) as exc:
        parser.error(f"{options.json} is no run of this version: {exc!r}")


def write_all(file: Path = KEPT) -> None:
    """Write the sections of README and of the page. Raises OSError, NoPlace, and what :func:`kept.load` raises."""
    machine, results = kept.load(file)
    found = beside.load()
    write(README, summary(machine, results, found))
    write(PAGE, page(machine, results, found))


def write(file: Path, text: str) -> None:
    """Put ``text`` between the markers of ``file``. Raises NoPlace."""
    whole = file.read_text()
    before, old, after = parted(whole)
    if old != text:
        file.write_text(before + _BEGIN + text + _END + after)


def parted(whole: str) -> tuple[str, str, str]:
    """What is before, between and after the markers. Raises NoPlace."""
    before, begin, rest = whole.partition(_BEGIN)
    between, end, after = rest.partition(_END)
    if not begin or not end:
        raise NoPlace(f"no lines {_BEGIN.strip()} and {_END.strip()}, in this order")
    return before, between, after


def summary(machine: dict[str, Any], results: Results, found: Sequence[beside.Measurement]) -> str:
    """Four lines of Markdown for README."""
    plan = _plan(machine)
    judged = floors(plan, results)
    broken = sum(floor.verdict is Verdict.BROKEN for floor in judged)
    unknown = sum(floor.verdict is Verdict.UNKNOWN for floor in judged)
    rest = f", and {unknown} could not be measured" if unknown else ""
    own, mirrored = (_range(_ratios(plan, results, table, SPEGEL, base)) for table, base in _SUMMARY)
    lines = [
        f"- Blobs that the node has leave at {own} times the rate of Go's `net/http`, from {_SMALL} to 1 GiB.",
        f"- A neighbour's blobs come, verified, at {mirrored} times the rate of a Go that verifies.",
        _beside(found),
        f"- {broken} of the benchmark's {len(judged)} floors did not hold{rest}."
        " [All figures](docs/performance.md), and how to measure them.",
    ]
    return "\n".join(lines) + "\n"


def _beside(found: Sequence[beside.Measurement]) -> str:
    said = []
    for kind, way, what in ((beside.MISS, "follow on", "a miss"), (beside.PULL, "default", "a pull")):
        for each in found:
            ratio = each.ratio(way) if each.kind == kind and "busy" not in each.name else None
            if ratio is not None:
                said.append(f"{what} ({each.name}) takes {ratio[0]:.2f} times its time, {ratio[1]:.2f} times its CPU")
                break
    return f"- Beside Spegel: {'; '.join(said) or 'not measured'}."


def page(machine: dict[str, Any], results: Results, found: Sequence[beside.Measurement]) -> str:
    """Markdown of all that was measured."""
    tables = "\n".join(beside.tables(found, machine["cores"]))
    return f"{section(machine, results)}\n### Beside Spegel\n\n{tables}" if tables else section(machine, results)


def section(machine: dict[str, Any], results: Results) -> str:
    """Markdown of what a run found on ``machine``; of what was not measured it says so."""
    plan = _plan(machine)
    blocks = [
        _filled(_how(machine, plan)),
        "\n".join(_table(plan, results)),
        _filled(_others(plan, results)),
        _filled([_floors(plan, results), *filter(None, [results.disturbed()])]),
        _filled(_cpu(plan, results)),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _plan(machine: dict[str, Any]) -> Plan:
    return workload.quick() if machine["quick"] else workload.full(machine["rounds"])


def _filled(sentences: Sequence[str] | Iterator[str]) -> str:
    text = " ".join(f"{sentence}." for sentence in sentences)
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _how(machine: dict[str, Any], plan: Plan) -> Iterator[str]:
    command = "python -m bench " + ("--quick" if machine["quick"] else f"--rounds {plan.rounds}")
    yield (
        f"From `{command}` on a machine with {machine['cores']} cores: one for the server, the other for its clients,"
        " over loopback"
    )
    peers = [f"Go is a server or a proxy of Go's own `net/http` ({_version(machine, 'go')})"]
    peers += [f"nginx is {_version(machine, 'nginx')}", f"Python {machine['python']}"]
    yield ", ".join(peers)
    many = sorted({load.connections for load in (*plan.of(OWN), *plan.of(MIRROR))})
    rounds = f"{plan.rounds} rounds" if plan.rounds > 1 else "one round"
    yield (
        f"Figures are ratios of throughput, medians of {rounds}, over {many[0]} to {many[-1]} transfers at"
        " once; above 1, spegel-consul is faster"
    )
    yield "What differs by less than 10 % is equal"


def _version(machine: dict[str, Any], name: str) -> str:
    found = re.search(r"\d+(\.\d+)+", machine["versions"].get(name, ""))
    return found[0] if found else "not there"


def _table(plan: Plan, results: Results) -> Iterator[str]:
    large = " and ".join(_large(plan))
    yield f"| | to Go, {large} | {_SMALL} | to nginx, {large} | {_SMALL} |"
    yield "|---|---|---|---|---|"
    for title, table, ours, bases in _ROWS:
        cells = [
            _range(_ratios(plan, results, table, ours, base, sizes))
            for base in bases
            for sizes in (_large(plan), [_SMALL])
        ]
        yield f"| {title} | " + " | ".join(cells + [""] * (4 - len(cells))) + " |"


def _large(plan: Plan) -> list[str]:
    return list(dict.fromkeys(load.of for load in (*plan.of(OWN), *plan.of(MIRROR)) if load.of != _SMALL))


def _ratios(
    plan: Plan, results: Results, table: str, ours: str, base: str, sizes: Sequence[str] | None = None
) -> list[float]:
    """The median of each workload of ``table``, of those blobs if they are given."""
    loads = [load.label for load in plan.of(table) if sizes is None or load.of in sizes]
    return [found.median for load in loads if (found := results.ratio(table, load, ours, base)) is not None]


def _range(figures: Sequence[float]) -> str:
    if not figures:
        return "not measured"
    return " to ".join(dict.fromkeys(f"{figure:.1f}" for figure in (min(figures), max(figures))))


def _others(plan: Plan, results: Results) -> Iterator[str]:
    manifests = next(load.label for load in plan.of(MANIFESTS) if load.connections == 16 and load.method == "GET")
    bases = (GO, NGINX, GO_SPEGEL)
    found = {base: results.ratio(MANIFESTS, manifests, SPEGEL, base) for base in bases}
    yield f"Manifests of 1 KiB, on 16 connections: {_times(found)}"
    ranges = {base: _ratios(plan, results, RANGES, SPEGEL, base) for base in (GO, NGINX)}
    times = ", ".join(f"{_range(figures)} times {_NAMES[base]}" for base, figures in ranges.items() if figures)
    yield f"Ranges of 8 MiB: {times or 'not measured'}"
    late = {server: _late(results, server) for server in (SPEGEL, GO, NGINX)}
    if late[SPEGEL]:
        times = _times({base: results.cold_ratio(SPEGEL, base) for base in (GO, NGINX)})
        theirs = ", ".join(f"{_NAMES[base]}: {late[base]}" for base in (GO, NGINX) if late[base])
        yield f"1 GiB from a cold disk: {times}; meanwhile other requests wait {late[SPEGEL]} at most ({theirs})"


def _times(found: dict[str, Spread | None]) -> str:
    return (
        ", ".join(f"{each.median:.2g} times {_NAMES[base]}" for base, each in found.items() if each) or "not measured"
    )


def _late(results: Results, server: str) -> str:
    """The longest that a request waited in any round."""
    found = [sample.late_max for sample in results.cold if sample.server == server]
    return f"{max(found):.0f} ms" if found else ""


def _floors(plan: Plan, results: Results) -> str:
    judged = floors(plan, results)
    broken = [floor.text() for floor in judged if floor.verdict is Verdict.BROKEN]
    unknown = [f"{floor.name} {floor.unit}".strip() for floor in judged if floor.verdict is Verdict.UNKNOWN]
    rest = f". {len(unknown)} could not be measured: {'; '.join(unknown)}" if unknown else ""
    if not broken:
        return f"All of the benchmark's {len(judged) - len(unknown)} floors held in this run{rest}"
    return f"Of the benchmark's {len(judged)} floors {len(broken)} did not hold in this run: {'; '.join(broken)}{rest}"


def _cpu(plan: Plan, results: Results) -> Iterator[str]:
    large = _large(plan)
    cost = {
        server: _cost(plan, results, server, large) for server in (SPEGEL, SPEGEL_UNVERIFIED, GO, GO_VERIFYING, NGINX)
    }
    verified, unverified, go = cost[SPEGEL], cost[SPEGEL_UNVERIFIED], cost[GO]
    if verified is not None and unverified is not None:
        theirs = [
            f"{name} {cost[server]:.2f} s"
            for server, name in ((GO, "Go"), (GO_VERIFYING, "a Go that verifies"), (NGINX, "nginx"))
            if cost[server] is not None
        ]
        yield (
            f"A GiB from a neighbour, in blobs of {' and '.join(large)}, costs {unverified:.2f} s of CPU not verified"
            f" and {verified:.2f} s verified ({', '.join(theirs)})"
        )
        slower = max(_ratios(plan, results, MIRROR, SPEGEL, GO, large), default=1.0) < 1
        if go is not None and verified - unverified > go and slower:
            yield (
                "Verified mirroring loses against a Go that verifies nothing because SHA-256 alone costs more than all"
                " that Go does"
            )
        small, bare = (_cost(plan, results, server, [_SMALL]) for server in (SPEGEL, SPEGEL_UNVERIFIED))
        if small is not None and bare is not None:
            yield (
                f"In blobs of {_SMALL}, which are held until they are verified (`--verify-first`), it costs"
                f" {bare:.2f} s and {small:.2f} s"
            )
    yield "Hashing has a thread of its own, so it may use another core than the transfer"
    if results.own_memory is not None:
        yield f"The process has {results.own_memory.idle:.0f} MiB"


def _cost(plan: Plan, results: Results, server: str, sizes: Sequence[str]) -> float | None:
    """CPU seconds per GiB of mirrored blobs: the median of all samples."""
    loads = {load.label for load in plan.of(MIRROR) if load.of in sizes}
    costs = [each.cost for each in results.of(MIRROR, server=server) if each.load in loads and each.bytes]
    return statistics.median(costs) if costs else None


if __name__ == "__main__":
    main()
