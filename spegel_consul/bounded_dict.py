"""``BoundedDict``: a dictionary that forgets its oldest entries.

Much of what is remembered is named by others: addresses, peer ids, digests.  Each such memory has a limit, because a
stranger can invent names without end.  The entry that was set longest ago goes first, and setting a key again makes it
the newest.  Reading changes nothing, so a look-up costs what it costs in a ``dict``.  Entries that lose their meaning
with time are dropped from the oldest on when new ones come, because otherwise the memory grows up to its limit.

A memory with another rule of its own (bounded by bytes, or by what was used last) does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """At most ``most`` entries. Entries are only set one by one (``memory[key] = value``), for that keeps the limit."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self._most:
            del self[next(iter(self))]

    def drop_oldest(self, is_over: Callable[[V], bool]) -> None:
        """Drop the oldest entries as long as ``is_over(value)``; two at most, so the cost of a call is bounded.

        A memory that calls this for each entry that it sets keeps hardly more than the entries that are not over.
        """
        for _ in range(2):
            oldest = next(iter(self), None)
            if oldest is None or not is_over(self[oldest]):
                return
            del self[oldest]
