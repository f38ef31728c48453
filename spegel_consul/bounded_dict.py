"""``BoundedDict``: a dictionary that forgets its oldest entries.

Much of what is remembered is named by others: addresses, peer ids, digests.  Each such memory has a limit, because a
stranger can invent names without end.  The entry that was set longest ago goes first, and setting a key again makes it
the newest.  Reading changes nothing, so a look-up costs what it costs in a ``dict``.

A memory with another rule of its own (bounded by bytes, by age, or by what was used last) does not belong here.
"""

from __future__ import annotations

from collections.abc import Hashable
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
