"""The keys of this node: which of them to announce, to which peers, and when.

Each key must be known to the peers nearest to it.  Two collections are kept per peer: ``pending`` (keys to announce)
and ``told`` (acknowledged batches, in the order of their acknowledgement).  2,000 keys in a ring of 20 make 40,000
pairs of a key and a peer that was told of it, so a pair costs no more than a reference to the key in the batch, and one
bit of the key's number, which has a bit for each peer.

* A batch goes out when ``pending`` is not empty.
* Keys that are not acknowledged stay in ``pending``, and the peer is retried after a back-off.
* Acknowledged keys return to ``pending`` before the record expires.  The period differs between peers, so that
  announcements which started together do not stay together.
* A new or lost member changes the nearest peers of the keys around its position: ``around`` returns these keys, and
  ``place`` finds the peers that lack them.  It does not look at all keys, because a node may have twenty thousand of
  them, and two thousand members that restart one by one.
* A withdrawn key is not renewed, and the peers that were told of it are told that it is gone.  Kademlia has no message
  for that, so it reaches only nodes of this program; on other nodes the record expires.

A rule about when a key is announced, renewed or withdrawn belongs here; the sending belongs in ``router``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field
from itertools import islice

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.ring.dht.keys import position

BATCH = 200
"""Keys in one batch, which one acknowledgement covers."""

_FIRST_RETRY, _LONGEST_RETRY = 0.25, 30.0
_PREFIX = 8  # leading bits of its position by which a key is grouped; a member of a full table concerns a few groups
_BELOW = 256 - _PREFIX
_STALE = 32  # withdrawn keys that may stay among those of a peer


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys to announce to one peer, and keys to withdraw from it."""

    peer: bytes
    keys: tuple[bytes, ...]
    withdrawn: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Target:
    """The announcements to one peer; ``told`` has the time and the keys of each acknowledgement.

    ``bit``: the peer's bit in the numbers of the keys; ``known``: the number of keys with that bit. ``pending`` has
    True for a key that the peer was told of before, because its record there may still be valid. ``stale``: how often a
    key that was withdrawn since is still in ``told``, always before the batch that has it again.
    """

    bit: int
    period: float
    known: int = 0
    pending: dict[bytes, bool] = field(default_factory=dict)
    told: deque[tuple[float, tuple[bytes, ...]]] = field(default_factory=deque)
    stale: dict[bytes, int] = field(default_factory=dict)
    withdrawn: dict[bytes, None] = field(default_factory=dict)
    busy: bool = False
    failures: int = 0
    retry_at: float = 0.0

    def due_at(self) -> float:
        if self.busy:
            return float("inf")
        if self.pending or self.withdrawn:
            return self.retry_at
        return max(self.retry_at, self.told[0][0] + self.period) if self.told else float("inf")

    def withdraw(self, key: bytes) -> None:
        """The peer was told of the key, which is gone."""
        self.withdrawn[key] = None
        self.stale[key] = self.stale.get(key, 0) + 1
        self.known -= 1
        if not self.known or len(self.stale) > max(_STALE, self.known // 4):
            told = ((at, tuple(self._valid(keys))) for at, keys in self.told)
            self.told = deque(batch for batch in told if batch[1])
            self.stale = {}

    def expire(self) -> Iterator[bytes]:
        """Remove the oldest batch; return its keys that were not withdrawn since."""
        for key in self._valid(self.told.popleft()[1]):
            self.known -= 1
            yield key

    def _valid(self, keys: Iterable[bytes]) -> Iterator[bytes]:
        """Return the keys of the oldest batch that were not withdrawn since; each batch in turn is the oldest."""
        for key in keys:
            if (count := self.stale.pop(key, 0)) == 0:
                yield key
            elif count > 1:
                self.stale[key] = count - 1


class Announcements:
    """The keys of this node and their announcements.

    ``closest`` returns the living members nearest to a position. ``ttl`` is the number of seconds within which each
    record must be announced again.
    """

    def __init__(self, closest: Callable[[int], list[bytes]], *, ttl: float, rng: random.Random | None = None) -> None:
        self._closest = closest
        self._ttl = ttl
        self._rng = rng or random.Random()
        self._own: dict[bytes, int] = {}
        """The bits of the peers that were told of a key."""
        self._groups: list[list[bytes]] = [[] for _ in range(1 << _PREFIX)]
        """The same keys, by the leading bits of their positions."""
        self._targets: dict[bytes, _Target] = {}
        self._bits = 0
        self._by_bit: dict[int, _Target] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._own

    def __len__(self) -> int:
        return len(self._own)

    def keys(self) -> list[bytes]:
        """All keys of this node."""
        return list(self._own)

    def around(self, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """The keys with a position in ``ranges`` (each its first and last), for :meth:`place` in slices.

        Other keys of the same groups are among them.
        """
        groups = {group for first, last in ranges for group in range(first >> _BELOW, (last >> _BELOW) + 1)}
        return [key for group in groups for key in self._groups[group]]

    @property
    def pending(self) -> int:
        """The number of (key, peer) pairs that are not acknowledged yet."""
        return sum(len(target.pending) for target in self._targets.values())

    def add(self, keys: Iterable[bytes]) -> None:
        """Announce ``keys``."""
        new = [key for key in dict.fromkeys(keys) if key not in self._own]
        for key in new:
            self._own[key] = 0
            self._group(key).append(key)
        self.place(new)

    def remove(self, keys: Iterable[bytes]) -> None:
        """Withdraw ``keys``."""
        pending = [target for target in self._targets.values() if target.pending]
        for key in keys:
            told = self._own.pop(key, None)
            if told is None:
                continue
            self._group(key).remove(key)
            # not each of all targets, because there may be thousands, and thousands of keys
            while told:
                bit = told & -told
                told ^= bit
                self._by_bit[bit].withdraw(key)
            for target in pending:
                if target.pending.pop(key, False):
                    target.withdrawn[key] = None

    def place(self, keys: Iterable[bytes]) -> None:
        """Mark ``keys`` as pending for each of their nearest peers that lacks them."""
        for key in keys:
            if (told := self._own.get(key)) is None:
                continue
            for peer in self._closest(position(key)):
                target = self._targets.get(peer) or self._new_target(peer)
                if not told & target.bit:
                    target.pending.setdefault(key, key in target.withdrawn)
                    target.withdrawn.pop(key, None)

    def _group(self, key: bytes) -> list[bytes]:
        return self._groups[position(key) >> _BELOW]

    def _new_target(self, peer: bytes) -> _Target:
        bit = ~self._bits & (self._bits + 1)  # the lowest that is free
        self._bits |= bit
        target = self._targets[peer] = self._by_bit[bit] = _Target(bit, self._ttl * self._rng.uniform(0.7, 0.95))
        return target

    def clear(self) -> list[bytes]:
        """Drop all keys. Returns the peers that may hold records of this node."""
        told = [peer for peer, target in self._targets.items() if target.told or target.busy]
        self._own.clear()
        for group in self._groups:
            group.clear()
        self._targets.clear()
        self._by_bit.clear()
        self._bits = 0
        return told

    def lost(self, peer: bytes) -> None:
        """``peer`` died, and its records with it; :meth:`place` the keys around it again afterwards."""
        if (target := self._targets.pop(peer, None)) is None:
            return
        for _, keys in target.told:
            for key in keys:
                if key in self._own:
                    self._own[key] &= ~target.bit
        self._bits &= ~target.bit
        del self._by_bit[target.bit]

    def batches(self, now: float) -> list[Batch]:
        """The batches to send now; a peer gets its next batch after :meth:`told` or :meth:`failed`."""
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
        """The peer acknowledged ``batch``. Returns the time of its next batch, or infinity."""
        if (target := self._targets.get(batch.peer)) is None:
            return float("inf")
        target.busy, target.failures, target.retry_at = False, 0, 0.0
        self._acknowledged(target, batch, now)
        return target.due_at()

    def failed(self, batch: Batch, now: float, *, told: Batch | None = None) -> float:
        """The peer acknowledged ``told`` and not the rest of ``batch``, which is sent again.

        Returns the time of its next batch, or infinity.
        """
        if (target := self._targets.get(batch.peer)) is None:
            return float("inf")
        if told is not None:
            self._acknowledged(target, told, now)
        wait = min(_LONGEST_RETRY, _FIRST_RETRY * 2**target.failures) * self._rng.uniform(0.75, 1.25)
        target.busy, target.failures, target.retry_at = False, target.failures + 1, now + wait
        return target.due_at()

    def _acknowledged(self, target: _Target, batch: Batch, now: float) -> None:
        told = tuple(key for key in batch.keys if key in target.pending)
        for key in told:
            del target.pending[key]
            self._own[key] |= target.bit
        if told:
            target.told.append((now, told))
            target.known += len(told)
        for key in batch.keys:
            if key not in self._own:  # it was withdrawn meanwhile
                target.withdrawn[key] = None
        for key in batch.withdrawn:
            target.withdrawn.pop(key, None)
        # a dictionary keeps its table when its items are deleted, 72 KiB for two thousand keys of each peer
        if not target.pending:
            target.pending = {}
        if not target.withdrawn:
            target.withdrawn = {}

    def wake_at(self) -> float:
        """The earliest time at which :meth:`batches` is not empty, as far as is known now; infinity if never."""
        return min((target.due_at() for target in self._targets.values()), default=float("inf"))

    def _expire(self, peer: bytes, target: _Target, now: float) -> None:
        """Return keys whose period is over to ``pending``, except keys to which other peers are nearer by now."""
        # about a batch at a time, because this spreads the renewal of many keys: each batch waits for the one before
        count = 0
        while target.told and count < BATCH and target.told[0][0] + target.period <= now:
            for key in target.expire():
                count += 1
                self._own[key] &= ~target.bit
                if peer in self._closest(position(key)):
                    target.pending[key] = True
