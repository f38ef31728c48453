"""The processes and sessions of ``consulsim``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spegel_consul.election.election_events import Action, Probe, ReadKey, Renew
from spegel_consul.election.election_view import State, View
from spegel_consul.election.state_machine import Election


@dataclass
class Session:
    node: int
    ends: float


@dataclass
class Sidecar:
    """One process of one node."""

    number: int
    election: Election
    alive: bool = True
    wake: float = math.inf
    reading: int = 0
    passed: float = -math.inf
    """Time of the last report for its check of spegel-leader."""


def leads(view: View) -> bool:
    return view.state is State.LEADER and view.fresh


def time_limit(action: Action) -> float:
    match action:
        case ReadKey(_, index, wait):
            return wait * 17 / 16 + 2 if index else 10.0
        case Renew(_, within) | Probe(within):
            return within
        case _:
            return 10.0
