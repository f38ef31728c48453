"""The policy for a new leader (``--on-leader-change``).

``keeper`` carries it out.  A new policy belongs here, and a case in the keeper.
"""

from __future__ import annotations

from enum import Enum


class OnLeaderChange(Enum):
    """The reaction of a router to a new leader; without effect without an election."""

    REJOIN = "rejoin"
    RESTART = "restart"
    IGNORE = "ignore"
