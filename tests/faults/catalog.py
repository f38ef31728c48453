# All faults of a cluster are tests of one module, so that they share it however tests are spread over processes, and so
# that it goes away after the last of them.  What they do is written down in several.

"""The list of faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

Do = Callable[[Any], None]
"""Takes the scene: a Scene, or a ColdScene for those in COLD_STARTS."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that ``do`` does to a cluster under load, with all the accounts that it opens."""

    name: str
    do: Do
    takes_minutes: bool


FAULTS: list[Fault] = []
"""Of a cluster under load."""

COLD_STARTS: list[Fault] = []
"""Of nodes that pull one new image at the same time."""


def fault(name: str, *, takes_minutes: bool = False, among: list[Fault] = FAULTS) -> Callable[[Do], Do]:
    """List what is decorated. ``takes_minutes``: it is done by ``make faults`` only."""

    def listed(do: Do) -> Do:
        among.append(Fault(name, do, takes_minutes))
        return do

    return listed


cold_start = partial(fault, among=COLD_STARTS)
