"""Measure a cold start: N nodes pull one new image, the upstream's line is narrow, and nobody has the image yet.

Each node is a network namespace with a real runtime and a sidecar; the upstream is a real registry behind tc. Needs
root, the parts of .ci/install-real-parts, and disk for twice the image on each node. Nothing is left behind.

How to read the table:

  mirror     none: runtimes ask the upstream; off: sidecars with --follow=off; on: sidecars with --follow=on.
  upstream   bytes that left the upstream's interface, and how many times the image that is. At best 1.00 x.
  ready      seconds from the first start until the first and the last node had the image.
  line       seconds that the upstream's line takes for one copy: the last node can't be ready earlier.
  CPU        user and system of all sidecars.
  requests   at the upstream: GET of blobs, GET of manifests, HEAD.

Bytes and requests hardly depend on the machine. Seconds do: compare them within one run, and see the load average.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

from lab import parts
from lab.cold_start import RUNTIMES
from lab.process import Failed
from rich.console import Console
from rich.table import Table

from bench.herd.measure import NoFollow, Plan, Round, rounds
from bench.herd.options import MIRRORS, layers, one_of, rate

EXIT_FAILED = 1
EXIT_UNABLE = 2


def main() -> int:
    """The exit status: 1 if a pull failed, 2 if not all could be measured."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
    began, done = time.monotonic(), list[Round]()
    plan = Plan(
        list(itertools.islice(itertools.cycle(options.runtime), options.nodes)),
        options.mirror,
        options.upstream,
        options.link,
        options.slow_node,
        options.image,
        options.start == "apart",
    )

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:4.0f} s  {text}", style="dim")

    problem = None
    try:
        parts.check()
        for each in rounds(plan, say):
            done.append(each)
    except (NoFollow, Failed, RuntimeError) as exc:
        problem = str(exc)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if done:
        console.print(_table(options, done))
    for each in done:
        for pull in each.outcome.failures:
            console.print(
                f"mirror {each.mirror}: {pull.node} failed after {pull.ended:.1f} s: {pull.problem}", style="red"
            )
    if options.json is not None and done:
        options.json.write_text(json.dumps(_document(plan, done), indent=1) + "\n")
    if problem is not None:
        print(f"bench.herd: {problem}", file=sys.stderr)
        return EXIT_UNABLE
    return EXIT_FAILED if any(each.outcome.failures for each in done) else 0


def _table(options: argparse.Namespace, done: list[Round]) -> Table:
    slow = f", n1 receives {options.slow_node} Mbit/s" if options.slow_node else ""
    image = _mib(done[0].outcome.image_bytes)
    title = (
        f"{options.nodes} nodes with {', '.join(options.runtime)} start {options.start}, {image} MiB"
        f" through {options.upstream} Mbit/s, links of {options.link} Mbit/s{slow}"
    )
    table = Table(title=title, title_justify="left", pad_edge=False)
    columns = ("mirror", "upstream", "copies", "first ready", "last ready", "line", "CPU", "requests", "failed", "load")
    for column in columns:
        table.add_column(column, justify="left" if column == "mirror" else "right", no_wrap=True)
    for each in done:
        outcome, ready = each.outcome, each.outcome.ready
        table.add_row(
            each.mirror,
            f"{_mib(outcome.upstream_bytes)} MiB",
            f"{outcome.copies:.2f} x",
            f"{ready[0]:.1f} s" if ready else "-",
            f"{ready[-1]:.1f} s" if ready else "-",
            f"{each.line:.1f} s",
            f"{each.cpu:.1f} s",
            f"{len(outcome.blobs)} + {outcome.manifests} + {outcome.heads}",
            str(len(outcome.failures)),
            f"{each.load:.1f}",
        )
    return table


def _mib(size: int) -> int:
    return round(size / (1 << 20))


def _document(plan: Plan, done: list[Round]) -> dict[str, object]:
    return {
        "runtimes": plan.runtimes,
        "upstream_mbit": plan.upstream,
        "link_mbit": plan.link,
        "slow_node_mbit": plan.slow_node,
        "layers": plan.layers,
        "apart": plan.apart,
        "cores": os.cpu_count(),
        "rounds": [each.document() for each in done],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.herd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=6, metavar="N", help="nodes that pull, 1 to 50 (default: 6)")
    parser.add_argument(
        "--runtime",
        type=one_of(*RUNTIMES),
        default=["2.1"],
        metavar="NAME[,NAME…]",
        help=f"{', '.join(RUNTIMES)}; of several the nodes have each by turns (default: 2.1)",
    )
    parser.add_argument(
        "--mirror",
        type=one_of(*MIRRORS),
        default=["none", "off"],
        metavar="NAME[,NAME…]",
        help="none, off, on: one row for each (default: none,off)",
    )
    parser.add_argument("--start", choices=("together", "apart"), default="together", help="apart: 1 s between nodes")
    parser.add_argument("--image", type=layers, default="4x64MiB", metavar="LAYERS", help="(default: 4x64MiB)")
    parser.add_argument("--upstream", type=rate, default="200mbit", metavar="RATE", help="(default: 200mbit)")
    parser.add_argument(
        "--link", type=rate, default="1gbit", metavar="RATE", help="what each node can send (default: 1gbit)"
    )
    parser.add_argument("--slow-node", type=rate, default=0, metavar="RATE", help="what the first node can receive")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every figure goes")
    options = parser.parse_args()
    if not 1 <= options.nodes <= 50:
        parser.error("--nodes must be 1 to 50")
    return options


if __name__ == "__main__":
    sys.exit(main())
