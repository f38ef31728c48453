"""Measure the ring: N routers as N processes on loopback, each with the sidecar's own router and nothing else.

Latencies are those of one node that asks while the others are quiet. On a machine with few cores a ring of 50
competes for them, so the CPU figures are the ones to compare; what all nodes do at once takes as long as these cores
need for all of them. So the lookups of all nodes are made a few at a time, which is a load that two cores can carry.
"""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from bench.ring.measure import Figure, Plan, merging, ring


def main() -> int:
    """The exit status: 1 if --check found a limit broken."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nodes", type=int, default=20, metavar="N", help="members of the ring, 5 to 200 (default: 20)"
    )
    parser.add_argument(
        "--keys", type=int, default=2000, metavar="K", help="keys that one node announces (default: 2000)"
    )
    parser.add_argument("--lookups", type=int, default=300, metavar="L", help="lookups of one node (default: 300)")
    parser.add_argument("--idle", type=float, default=10, metavar="S", help="seconds of idling (default: 10)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure is beyond its limit")
    options = parser.parse_args()
    if not 5 <= options.nodes <= 200:
        parser.error("--nodes must be 5 to 200")
    if options.keys < 1 or options.lookups < 1 or options.idle <= 0:
        parser.error("--keys and --lookups must be at least 1, --idle more than 0")
    began = time.monotonic()
    figures = list(ring(Plan(options.nodes, options.keys, options.lookups, options.idle, 1.5 * options.idle)))
    figures += merging()
    _print(figures, f"A ring of {options.nodes}, in {time.monotonic() - began:.0f} s")
    broken = [figure.name for figure in figures if not figure.held]
    if options.check:
        print("BROKEN: " + "; ".join(broken) if broken else "all limits held")
        return 1 if broken else 0
    return 0


def _print(figures: list[Figure], title: str) -> None:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in ("figure", "found", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for figure in figures:
        limit = "" if figure.limit is None else f"{'≥' if figure.at_least else '≤'} {figure.limit:g} {figure.unit}"
        style = "" if figure.limit is None else "green" if figure.held else "red"
        table.add_row(figure.name, f"{figure.value:.2f} {figure.unit}", limit, style=style)
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
