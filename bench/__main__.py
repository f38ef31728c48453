"""Measure the sidecar against nginx, docker-registry and Go on this machine, in one go.

Needs root (a network namespace of its own), two cores, a C compiler and 1.4 GiB of disk. go, nginx, docker-registry,
and containerd with its Go client take part if they are installed; what is missing is said, with how to install it.
Nothing is left running, and nothing is kept outside of the cache directory.

How it is measured: servers on one core, clients on another, loopback with reno. All servers of a table are up at
once; a round takes one sample of each, in changing order, when the machine is quiet. "x go" is the rate by that of
the Go peer in the same round. Each figure is the median of the rounds, with lowest and highest behind it. What
differs by less than 10 % is equal.

How to read the tables:

  own blobs       whole blobs from files. go is net/http with sendfile, in the shape of Spegel's handlers; nginx is
                  what is possible. docker-registry is what most people run.
  mirrored blobs  a node that does not have the blob gets it from a neighbour, found by a lookup in a real ring. The
                  neighbour is nginx and runs on the clients' core, so that the node is what limits the transfer.
                  "go" is Go's http.Client and io.Copy, which is what Spegel does; "nginx" is proxy_pass; neither
                  verifies. "spegel" verifies unless the row says otherwise; its fair peer is "go, verifying".
  own TLS         the same over TLS 1.3 with one cipher for all, on one connection.
  mirrored TLS    the neighbour speaks TLS, and the client, which is the node's own runtime, plain text. Go and nginx
                  are proxies that do the same. "CPU x go" is Go's CPU by that of the row, in the same round: above 1
                  the row is cheaper than Go.
  manifests       1 KiB, in thousands of answers per second. "go+containerd" asks a containerd twice per request and
                  keeps metrics, as Spegel does; that containerd runs on the clients' core and is not in "CPU".
  ranges          "bytes=N-" of which 8 MiB are read before the connection is dropped.
  cold cache      1 GiB from the disk. "late" is by how much a HEAD of a manifest, asked every 2 ms on another
                  connection, took longer than on the idle server: how long the event loop was held up. Of a server
                  with several threads it is how long the core was.
  CPU             user and system of the server's processes; of all figures the one that neighbours disturb least.
  floors          "goal" is what a quiet machine shows, "limit" what --check insists on.

README's section "How fast it is" and docs/performance.md are made by --rounds 3 --keep on an idle machine. The samples
are kept in bench/results.json, from which python -m bench.readme writes them again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import content, kept, readme, report, tools, workload
from bench.arena import ArenaError, enter
from bench.floors import Floor, Verdict, floors
from bench.run import Run

EXIT_BROKEN = 1
EXIT_UNABLE = 2


def main() -> int:
    """The exit status: 1 if --check found a floor broken, 2 if an error ended the run or --check had no figure."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
    plan = workload.quick() if options.quick else workload.full(options.rounds)
    try:
        found = tools.find(options.cache)
        pieces = content.prepare(options.cache)
        began = time.monotonic()
        versions = tools.versions(found)
        arena = enter()
        with tempfile.TemporaryDirectory(prefix="spegel-bench-") as scratch:

            def say(text: str) -> None:
                console.print(f"{time.monotonic() - began:4.0f} s  {text}", style="dim")

            run = Run(plan, arena, found, pieces, Path(scratch), say)
            for line in run.missing():
                console.print(f"missing: {line}", style="yellow")
            failure = run.all(options.only)
    except (ArenaError, tools.ToolMissing, content.ContentError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return EXIT_UNABLE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    took = time.monotonic() - began
    results = run.results
    verdicts = floors(plan, results)
    report.tables(console, results)
    report.verdicts(console, verdicts)
    machine = arena.description() | {
        "versions": versions,
        "quick": options.quick,
        "rounds": plan.rounds,
        "seconds": took,
    }
    text = kept.document(machine, results, verdicts)
    kept.save(options.json, text)
    console.print(f"{took:.0f} s; every sample is in {options.json}", style="dim")
    if failure is not None:
        print(f"bench: {failure}", file=sys.stderr)
        return EXIT_UNABLE
    if options.keep:
        kept.save(readme.KEPT, text)
        readme.write_all()
    if options.check:
        print(report.last_line(verdicts))
        return exit_status(verdicts)
    return 0


def exit_status(floors: Sequence[Floor]) -> int:
    """That of --check. A floor whose servers are not installed counts for nothing, but some must be measured."""
    found = {floor.verdict for floor in floors}
    if Verdict.BROKEN in found:
        return EXIT_BROKEN
    return 0 if found - {Verdict.UNKNOWN} else EXIT_UNABLE


def _options() -> argparse.Namespace:
    cache = tools.cache_dir()
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer workloads and short samples: about a minute")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a figure is beyond its limit, with 2 if there is none"
    )
    parser.add_argument(
        "--only",
        choices=("own", "mirrored", "tls"),
        help="measure a part: stored, not stored, or both over TLS",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of a full run (default: 3)")
    parser.add_argument("--cache", type=Path, default=cache, help=f"built programs and content (default: {cache})")
    parser.add_argument("--json", type=Path, help="where the figures go (default: result.json in the cache)")
    parser.add_argument(
        "--keep", action="store_true", help="keep this run in bench/results.json, and write the documents from it"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.keep and options.only is not None:
        parser.error("--keep tells of all, so --only can't be given with it")
    options.json = options.json or options.cache / "result.json"
    return options


if __name__ == "__main__":
    sys.exit(main())
