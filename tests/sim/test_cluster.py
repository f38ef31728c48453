# Whole clusters in virtual time, see world.py.  `make sim` runs larger ones.

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

from spegel_consul.election.state_machine import Election
from spegel_consul.ring.router import KadRouter
from tests.sim import faults
from tests.sim.faults import Fault
from tests.sim.world import run, shrink

ROOT = Path(__file__).parents[2]
FEW = 12


def _simulate(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.sim", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _digests(printed: str) -> list[tuple[str, str]]:
    return re.findall(r"^seed (\d+): ok, .* KiB/node, (\w{12}),", printed, re.MULTILINE)


def test_clusters_become_one_ring_after_faults() -> None:
    printed = _simulate("--nodes", "30", "--seeds", "2", "--jobs", "2")
    assert [seed for seed, _ in _digests(printed)] == [str(seed) for seed in range(2)]


def test_a_seed_replays_exactly() -> None:
    among_others = _digests(_simulate("--nodes", "24", "--seeds", "2", "--jobs", "2"))
    alone = _digests(_simulate("--nodes", "24", "--seed-from", "1", "--seeds", "1"))
    assert alone == [among_others[1]]
    assert alone[0][0] == "1"


def test_what_breaks_the_ring_is_noticed() -> None:
    with mock.patch.object(KadRouter, "_on_change", return_value=None):  # nobody is told what they are now to hold
        outcome = run(24, 0, chosen=[])
    assert any("of its 20 nearest" in problem for problem in outcome.problems)


def test_leaders_that_ignore_their_lease_are_noticed_and_what_it_takes_is_named() -> None:
    cut_off = [Fault("leader cut off", at, 45.0, ()) for at in (45.0, 110.0)]
    others = [Fault("slow", 42.0, 2.0, ()), Fault("servers", 100.0, 2.0, ())]
    with (
        mock.patch.object(faults, "plan", return_value=[*cut_off, *others]),
        mock.patch.object(Election, "_lead_end", math.inf),
    ):
        outcomes = [run(FEW, seed) for seed in range(3)]
        failed = next(outcome for outcome in outcomes if any("all lead" in problem for problem in outcome.problems))
        chosen, least = shrink(FEW, failed)
    assert least.problems
    assert set(chosen) < {0, 1, 2, 3}
    assert least.faults == [failed.faults[number] for number in chosen]
    assert set(least.faults) & set(cut_off)
