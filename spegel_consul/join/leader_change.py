"""What a router does about a new leader."""

from __future__ import annotations

from enum import Enum


class OnLeaderChange(Enum):
    """What a router does when another node leads; without effect where nothing is elected."""

    REJOIN = "rejoin"
    RESTART = "restart"
    IGNORE = "ignore"
