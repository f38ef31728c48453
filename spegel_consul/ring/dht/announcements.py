# What this node has, and who has been told.
#
# Each key is to be known to the peers nearest to it.  For each peer two sets are kept: keys that it must
# still be told, and keys that it acknowledged, in the order in which it did.  A batch goes out when there
# is something to tell; what is not acknowledged goes back to the first set and the peer is left alone for a
# while; what was acknowledged goes back there before the record expires, after a period that differs from
# peer to peer, so that announcements which began together don't stay together.
#
# A new member, or the loss of one, changes who is nearest:  `place` looks at keys again and finds who lacks
# them.  A key that was withdrawn is renewed no more, and those who were told of it are told that it is gone.
# Kademlia has no message for that, so this reaches only nodes of this program, and elsewhere the record
# expires.

"""Which keys to announce to whom, and when."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from spegel_consul.ring.dht.keys import position

BATCH = 200
"""Keys in one batch; one acknowledgement covers it."""

_FIRST_RETRY, _LONGEST_RETRY = 0.25, 30.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys to tell one peer, and keys of which it was told that are withdrawn."""

    peer: bytes
    keys: tuple[bytes, ...]
    withdrawn: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Target:
    """What one peer must be told, and what it was told when."""

    period: float
    pending: dict[bytes, None] = field(default_factory=dict)
    told: dict[bytes, float] = field(default_factory=dict)
    withdrawn: dict[bytes, None] = field(default_factory=dict)
    busy: bool = False
    failures: int = 0
    retry_at: float = 0.0

    def due_at(self) -> float:
        if self.busy:
            return float("inf")
        if self.pending or self.withdrawn:
            return self.retry_at
        oldest = next(iter(self.told.values()), None)
        return float("inf") if oldest is None else max(self.retry_at, oldest + self.period)


class Announcements:
    """The keys of this node. ``closest`` gives the living members nearest to a position.

    ``ttl`` is the number of seconds after which a record must have been announced again.
    """

    def __init__(self, closest: Callable[[int], list[bytes]], *, ttl: float, rng: random.Random | None = None) -> None:
        self._closest = closest
        self._ttl = ttl
        self._rng = rng or random.Random()
        self._own: dict[bytes, int] = {}
        self._targets: dict[bytes, _Target] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._own

    def __len__(self) -> int:
        return len(self._own)

    def keys(self) -> list[bytes]:
        """All keys of this node, for :meth:`place` in slices."""
        return list(self._own)

    @property
    def pending(self) -> int:
        """How many (key, peer) pairs wait to be told or acknowledged."""
        return sum(len(target.pending) for target in self._targets.values())

    def add(self, keys: Iterable[bytes]) -> None:
        """This node has ``keys``."""
        new = [key for key in keys if key not in self._own]
        self._own.update((key, position(key)) for key in new)
        self.place(new)

    def remove(self, keys: Iterable[bytes]) -> None:
        """This node has ``keys`` no longer."""
        for key in keys:
            if self._own.pop(key, None) is not None:
                for target in self._targets.values():
                    target.pending.pop(key, None)
                    if target.told.pop(key, None) is not None:
                        target.withdrawn[key] = None

    def place(self, keys: Iterable[bytes]) -> None:
        """See that those who are nearest to ``keys`` now will be told."""
        for key in keys:
            if (at := self._own.get(key)) is None:
                continue
            for peer in self._closest(at):
                target = self._targets.get(peer)
                if target is None:
                    target = self._targets[peer] = _Target(self._ttl * self._rng.uniform(0.7, 0.95))
                if key not in target.told:
                    target.pending[key] = None
                    target.withdrawn.pop(key, None)

    def clear(self) -> list[bytes]:
        """This node has nothing any more. Returns the peers that were told of something."""
        told = [peer for peer, target in self._targets.items() if target.told or target.busy]
        self._own.clear()
        self._targets.clear()
        return told

    def lost(self, peer: bytes) -> None:
        """``peer`` died: what it was told is gone. Its keys are to be placed again."""
        self._targets.pop(peer, None)

    def batches(self, now: float) -> list[Batch]:
        """What to tell whom now, at most one batch per peer; each until :meth:`told` or :meth:`failed`."""
        batches = []
        for peer, target in self._targets.items():
            if target.due_at() > now:
                continue
            self._expire(peer, target, now)
            keys, withdrawn = tuple(islice(target.pending, BATCH)), tuple(islice(target.withdrawn, BATCH))
            if keys or withdrawn:
                target.busy = True
                batches.append(Batch(peer, keys, withdrawn))
        return batches

    def told(self, batch: Batch, now: float) -> float:
        """The peer acknowledged ``batch``. Returns when there is something for this peer again, infinity if never."""
        if (target := self._targets.get(batch.peer)) is None:
            return float("inf")
        target.busy, target.failures, target.retry_at = False, 0, 0.0
        self._acknowledged(target, batch, now)
        return target.due_at()

    def failed(self, batch: Batch, now: float, *, told: Batch | None = None) -> float:
        """The peer acknowledged ``told`` and not the rest of ``batch``, which will be sent again.

        Returns when, infinity if never.
        """
        if (target := self._targets.get(batch.peer)) is None:
            return float("inf")
        if told is not None:
            self._acknowledged(target, told, now)
        wait = min(_LONGEST_RETRY, _FIRST_RETRY * 2**target.failures) * self._rng.uniform(0.75, 1.25)
        target.busy, target.failures, target.retry_at = False, target.failures + 1, now + wait
        return target.due_at()

    def _acknowledged(self, target: _Target, batch: Batch, now: float) -> None:
        for key in batch.keys:
            if key in target.pending:
                del target.pending[key]
                target.told[key] = now
            elif key not in self._own:  # it was withdrawn meanwhile
                target.withdrawn[key] = None
        for key in batch.withdrawn:
            target.withdrawn.pop(key, None)

    def wake_at(self) -> float:
        """When :meth:`batches` has something, as far as is known now; infinity if never."""
        return min((target.due_at() for target in self._targets.values()), default=float("inf"))

    def _expire(self, peer: bytes, target: _Target, now: float) -> None:
        """Tell again what was told long ago, unless others are nearer to it by now."""
        # a batch at a time, which spreads the renewal of many keys: each batch waits for the one before
        for key in list(islice(target.told, BATCH)):
            if target.told[key] + target.period > now:
                break
            del target.told[key]
            if peer in self._closest(self._own[key]):
                target.pending[key] = None
