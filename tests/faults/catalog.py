# All faults are tests of one module, so that they share one cluster however tests are spread over processes, and so
# that it goes away after the last of them.  What they do is written down in several.

"""The list of faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.scene import Scene


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that ``do`` does to a cluster under load, with all the accounts that it opens."""

    name: str
    do: Callable[[Scene], None]
    takes_minutes: bool


FAULTS: list[Fault] = []


def fault(name: str, *, takes_minutes: bool = False) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """List what is decorated. ``takes_minutes``: it is done by ``make faults`` only."""

    def listed(do: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS.append(Fault(name, do, takes_minutes))
        return do

    return listed
