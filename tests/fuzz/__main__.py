"""`python -m fuzz --minutes 30 [--target kad] [--seed 7]`, in tests/: fuzz for a while, and say what was found.

A finding is printed with its input; put that into tests/fuzz/corpus/<target>/, where the suite runs it ever after.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import structlog

from fuzz.mutate import generated
from fuzz.seeds import seeds
from fuzz.targets import TARGETS

SLOW = 2.0
"""Seconds of CPU that no input may take."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=None, help="replays a run")
    parser.add_argument("--keep", type=Path, help="directory for the inputs that were found")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seed = given.seed if given.seed is not None else random.randrange(1 << 32)
    names = given.target or sorted(TARGETS)
    end, began = time.monotonic() + given.minutes * 60, resident()
    runs: Counter[str] = Counter()
    found: dict[str, str] = {}
    number = 0
    print(f"seed {seed}, targets {', '.join(names)}", flush=True)
    while time.monotonic() < end:
        for name in names:
            turn = time.monotonic() + 2.0  # each has the same time, however slow it is
            while time.monotonic() < min(turn, end):
                number += 1
                dice = random.Random(f"{seed} {number}")
                data = generated(dice, seeds(name))
                runs[name] += 1
                used = time.process_time()
                try:
                    TARGETS[name](data)
                    if time.process_time() - used > SLOW:
                        raise AssertionError(f"took {time.process_time() - used:.1f} s of CPU")
                except Exception as exc:
                    where = traceback.extract_tb(exc.__traceback__)[-1]
                    mark = f"{name}: {type(exc).__name__} at {Path(where.filename).name}:{where.lineno}"
                    if mark not in found:
                        found[mark] = f"{exc!s:.300}"
                        print(f"FOUND {mark}: {exc!s:.300}\n  input {data[:400]!r}", flush=True)
                        if given.keep:
                            given.keep.mkdir(parents=True, exist_ok=True)
                            (given.keep / f"{name}-{len(found)}").write_bytes(data)
    print(f"{sum(runs.values())} runs, {len(found)} findings, {(resident() - began) >> 20} MiB grown")
    for name in names:
        print(f"  {name:18} {runs[name]:9}")
    return 1 if found else 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
