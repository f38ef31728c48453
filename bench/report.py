"""Tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from bench.figures import Results, Spread
from bench.floors import Floor, Verdict
from bench.programs import GO, NGINX
from bench.rounds import Sample
from bench.tls import SUITE
from bench.workload import MANIFESTS, MIRROR, MIRROR_TLS, OWN, OWN_TLS, RANGES

_TITLES = {
    OWN: "Blobs that the node has",
    MIRROR: "Blobs that a neighbour has (the neighbour is nginx; go and nginx are proxies here)",
    OWN_TLS: f"Blobs that the node has, over TLS 1.3 ({SUITE})",
    MIRROR_TLS: f"Blobs that a neighbour has, who speaks TLS 1.3 ({SUITE}), for a client in plain text",
    MANIFESTS: "A manifest of 1 KiB",
    RANGES: "Ranges of a blob, as containerd fetches one layer in parallel",
}


_STYLES = {Verdict.BROKEN: "red", Verdict.HELD: "yellow", Verdict.GOAL: "green"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    return table


def tables(console: Console, results: Results) -> None:
    """Print what was measured, best first within a workload."""
    for table in _TITLES:
        if samples := results.of(table):
            console.print(_rates(results, table, samples))
    if results.cold:
        console.print(_cold(results))
    console.print(_sidecar(results))
    if disturbed := results.disturbed():
        console.print(disturbed, style="yellow")


def _rates(results: Results, table: str, samples: Sequence[Sample]) -> Table:
    bulk = samples[0].bulk
    rate, cost = ("GiB/s", "CPU s/GiB") if bulk else ("1000/s", "CPU us each")
    encrypted = table in (OWN_TLS, MIRROR_TLS)
    last = (f"CPU x {GO}", f"CPU x {NGINX}") if encrypted else ("p50 us", "p99 us")
    shown = _table(_TITLES[table], "workload", "server", rate, f"x {GO}", f"x {NGINX}", cost, *last)
    for load in dict.fromkeys(sample.load for sample in samples):
        rows = []
        for server in dict.fromkeys(sample.server for sample in results.of(table, load)):
            own = results.of(table, load, server)
            found = Spread.of(sample.rate * (1 if bulk else 1e-3) for sample in own)
            paid = Spread.of(sample.cost for sample in own)
            if found is None or paid is None:
                continue
            rows.append(
                (
                    found.median,
                    server + ("  (wrong answers)" if any(sample.errors for sample in own) else ""),
                    found.text(2),
                    _text(results.ratio(table, load, server, GO)),
                    _text(results.ratio(table, load, server, NGINX)),
                    f"{paid.median:.3f}" if bulk else f"{paid.median:.1f}",
                    *(
                        (_text(results.cost_ratio(table, load, server, base)) for base in (GO, NGINX))
                        if encrypted
                        else (
                            _latency(own, lambda sample: sample.p50_us),
                            _latency(own, lambda sample: sample.p99_us),
                        )
                    ),
                )
            )
        rows.sort(reverse=True)
        for number, (_, *cells) in enumerate(rows):
            shown.add_row("" if number else load, *cells, end_section=number == len(rows) - 1)
    return shown


def _latency(samples: Sequence[Sample], value: Callable[[Sample], float]) -> str:
    # of answers that did not end within the sample nothing is known
    found = Spread.of(value(sample) for sample in samples if sample.requests)
    return f"{found.median:.0f}" if found else "-"


def _cold(results: Results) -> Table:
    title = "1 GiB from a cold page cache, and how late small requests are answered meanwhile"
    shown = _table(title, "workload", "server", "GiB/s", f"x {GO}", "late p99 ms", "late max ms", "CPU s")
    for server in dict.fromkeys(sample.server for sample in results.cold):
        own = [sample for sample in results.cold if sample.server == server]
        rate = Spread.of(sample.rate for sample in own)
        shown.add_row(
            "cold 1 GiB x1",
            server,
            _text(rate),
            _text(results.cold_ratio(server, GO)),
            _text(Spread.of(sample.late_p99 for sample in own), 1),
            _text(Spread.of(sample.late_max for sample in own), 1),
            _text(Spread.of(sample.server_cpu for sample in own)),
        )
    return shown


def _sidecar(results: Results) -> Table:
    shown = _table("The whole sidecar", "what", "", "found")
    rows: list[tuple[str, str, Spread | None]] = [("start to first 200 of /readyz", "s", Spread.of(results.starts))]
    for what, memory in (("own blobs", results.own_memory), ("mirrored blobs", results.mirror_memory)):
        if memory:
            moved = f"{memory.transferred / 1024:.1f} GiB moved"
            rows.append((f"RSS idle, serving {what}", "MiB", Spread.of([memory.idle])))
            rows.append((f"RSS growth under 16 x 1 GiB, {what} ({moved})", "MiB", Spread.of([memory.growth])))
    if results.stalled_stop is not None:
        allowed = "unknown" if results.graceful_timeout is None else f"{results.graceful_timeout:g} s"
        what = f"SIGTERM with a stalled reader (graceful timeout {allowed})"
        rows.append((what, "s", Spread.of([results.stalled_stop])))
    for what, unit, found in rows:
        shown.add_row(what, unit, _text(found))
    return shown


def verdicts(console: Console, floors: Sequence[Floor]) -> None:
    """Print goal, limit and verdict of each figure."""
    shown = _table("Floors", "figure", "", "found", "goal", "limit", "verdict")
    for floor in floors:
        sign = "<=" if floor.at_most else ">="
        bars = [f"{sign} {bar:g}" for bar in (floor.goal, floor.limit)]
        verdict = floor.verdict
        shown.add_row(floor.name, floor.unit, _text(floor.found), *bars, verdict.value, style=_STYLES.get(verdict))
    console.print(shown)


def last_line(floors: Sequence[Floor]) -> str:
    """Which floors are broken; what could not be held against any is named as well."""
    broken = [floor.text() for floor in floors if floor.verdict is Verdict.BROKEN]
    unknown = sum(floor.verdict is Verdict.UNKNOWN for floor in floors)
    if unknown == len(floors):
        return f"none of {unknown} floors was measured"
    rest = f"; {unknown} not measured" if unknown else ""
    if broken:
        return f"{len(broken)} of {len(floors)} floors broken{rest}: {'; '.join(broken)}"
    return f"all {len(floors) - unknown} floors held{rest}"


def _text(spread: Spread | None, digits: int = 2) -> str:
    return "-" if spread is None else spread.text(digits)
