"""``PYTHONPATH=tests python -m tests.soak --minutes 60``.

Exits with 1 if a pull failed, something grew, or peers did not serve.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab import parts

from tests.faults.scene import Scene
from tests.soak.soak import Soak

_WARM_UP = 0.25  # of the time, for caches to fill


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="a file for the values over time")
    given = parser.parse_args()
    parts.check()
    with Scene() as scene:
        soak = Soak(scene, given.seed, given.samples)
        soak.run(given.minutes * 60)
        growths = list(soak.growths(given.minutes * 60 * _WARM_UP))
        unserved = list(soak.unserved())
        pulls = scene.load.pulls
        print(f"{len(pulls)} pulls, the slowest of {max(pull.seconds for pull in pulls):.1f} s")
        print(f"{soak.images} images came and went; {soak.leaders} leaders, {soak.restarts} restarts")
    for growth in growths:
        print(growth)
    for problem in unserved:
        print(problem)
    return 1 if unserved or any(growth.is_leak for growth in growths) else 0


if __name__ == "__main__":
    sys.exit(main())
