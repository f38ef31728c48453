"""Runs of a whole cluster in virtual time, see world.py: ``python -m tests.sim --nodes 1000 --seeds 200``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.sim.world import Outcome, run_all, shrink


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.sim", description="A cluster in virtual time.")
    asked.add_argument("--nodes", type=int, default=200)
    asked.add_argument("--seeds", type=int, default=20, help="how many runs")
    asked.add_argument("--seed-from", type=int, default=0)
    asked.add_argument("--jobs", type=int, default=1)
    asked.add_argument("--faults", help="numbers of the faults that happen, by default all: 0,2")
    asked.add_argument("--no-shrink", action="store_true", help="don't look for the fewest faults that fail")
    options = asked.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order in sets is part of what a seed decides
        os.execvpe(
            sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    chosen = [int(number) for number in options.faults.split(",") if number] if options.faults is not None else None
    seeds = range(options.seed_from, options.seed_from + options.seeds)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for outcome in run_all(options.nodes, seeds, chosen=chosen, jobs=options.jobs):
        outcomes.append(outcome)
        print(
            f"seed {outcome.seed}: {'FAILED' if outcome.problems else 'ok'}, one ring after {outcome.together:.0f} s, "
            f"all found after {outcome.found:.0f} s, {outcome.messages:.0f} messages/node/min, "
            f"{outcome.quiet_messages:.0f} when quiet, {outcome.acquires} acquires for {outcome.changes} leaders, "
            f"{outcome.rss / options.nodes:.0f} KiB/node, {outcome.digest}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )

    for outcome in outcomes:
        if outcome.problems:
            _tell(options.nodes, outcome, chosen, shrinking=chosen is None and not options.no_shrink)
    return _sum_up(options.nodes, outcomes)


def _tell(nodes: int, outcome: Outcome, chosen: list[int] | None, *, shrinking: bool) -> None:
    if shrinking:
        chosen, outcome = shrink(nodes, outcome)
    print(f"seed {outcome.seed}:")
    for problem in outcome.problems:
        print(f"    {problem}")
    for fault in outcome.faults:
        print(f"    {fault}")
    only = f" --faults {','.join(map(str, chosen))}" if chosen is not None else ""
    print(f"    again: python -m tests.sim --nodes {nodes} --seed-from {outcome.seed} --seeds 1{only}", flush=True)


def _sum_up(nodes: int, outcomes: list[Outcome]) -> int:
    failed = [outcome.seed for outcome in outcomes if outcome.problems]
    together, found = sorted(each.together for each in outcomes), sorted(each.found for each in outcomes)
    middle = len(outcomes) // 2
    print(
        f"{len(outcomes)} seeds of {nodes} nodes, {len(failed)} failed{': ' if failed else ''}{failed or ''}\n"
        f"one ring after p50 {together[middle]:.0f} s, longest {together[-1]:.0f} s; "
        f"all found after p50 {found[middle]:.0f} s, longest {found[-1]:.0f} s\n"
        f"messages per node and minute: {max(each.messages for each in outcomes):.0f} with faults, "
        f"{max(each.quiet_messages for each in outcomes):.0f} when quiet, at most; "
        f"memory {max(each.rss for each in outcomes) / nodes:.0f} KiB per node at most"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
