"""The age of a tag: told to peers, read from their answers, and compared.

A digest names the same bytes for ever, and a tag moves. So nodes that pulled a tag at different times have different
images under it. Each node tells the age of its tag: the seconds since its registry was known to say so. It is an
age and never a time of day, because clocks of nodes differ.

The store knows since when its runtime has the tag (:mod:`spegel_consul.store.tag_times`). If the runtime had it from a
peer through this mirror, it is as old as the peer said, and not as young as the pull: otherwise one old tag would look
new on each node that takes it. So the mirror remembers its answers. The last one about this digest, or that there is
none, before the runtime wrote its tag explains it. Later ones do not, because a pull may fail, or another client may
have asked.

A claim of a peer is bounded: anything but a whole number of seconds, and more than ten years, is no age. A peer that
tells no age, such as Spegel, comes after those that do. A peer that lies can make its tag be taken, as it could before
there were ages; the policy of addresses decides whom to ask at all.

A new rule about the age of one tag, or the choice between two, belongs here. The rules for the wait for more answers
are in :mod:`spegel_consul.registry.mirror.fetch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.providers.provider_cache import FRESH
from spegel_consul.registry.mirror.trace import HIT
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.store import Store
from spegel_consul.store.tag_times import OLDEST

_MOST = 4096
_SWEEP_EVERY = 64  # tags that are passed on, and as many as are remembered, until lost ones are forgotten
_WRITTEN_WITHIN = 3600.0  # seconds in which the runtime writes a tag that was passed on


class OwnTagIsNewer(Exception):
    """The peers that answered have an older tag than this node, so this node's own is to be sent."""

    outcome = HIT


def parse_age(value: str | None) -> int | None:
    """Return the seconds in a peer's header field, or None if it is absent, malformed or absurd."""
    if value is None or not (value.isascii() and value.isdigit() and len(value) < 12):
        return None
    return int(value) if int(value) <= OLDEST else None


def newest(heads: Sequence[Head]) -> int:
    """Return the index of the answer with the youngest tag; of equals, and of unknown ones, the first."""
    return min(range(len(heads)), key=lambda each: _order(heads[each].tag_age))


def agree(heads: Sequence[Head]) -> bool:
    """Whether several answers name the same digest."""
    return len(heads) > 1 and all(each.digest == heads[0].digest for each in heads)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the mirror answered at the time ``at``: a digest with its age, or, for None, that it has no such tag."""

    digest: Digest | None
    age: float | None
    at: float


class TagAges:
    """The ages of this node's own tags, by the store and by what the mirror passed on to the runtime."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._passed_on: BoundedDict[str, tuple[_Answer, ...]] = BoundedDict(_MOST)
        self._next_sweep = _SWEEP_EVERY  # after so many tags that are passed on
        self._agreed: BoundedDict[str, tuple[Digest, float]] = BoundedDict(_MOST)

    def agreed(self, name: str, digest: Digest) -> None:
        """Several peers have just said the same digest of the tag."""
        now = trio.current_time()
        self._agreed.drop_oldest(lambda agreed: agreed[1] <= now)
        self._agreed[name] = digest, now + FRESH

    def agreed_on(self, name: str) -> Digest | None:
        """Return the digest that peers agreed on a moment ago, so that one of them is enough to confirm it."""
        digest, until = self._agreed.get(name, (None, 0.0))
        return digest if until > trio.current_time() else None

    def passed_on(self, name: str, head: Head) -> None:
        """The runtime of this node gets the tag ``name`` from a peer."""
        self._note(name, head.digest, head.tag_age)

    def kept(self, reference: Reference) -> None:
        """The runtime of this node gets its own tag again, which does not get younger by being written again."""
        name = str(reference)
        digest = self._store.resolve(name) if self._store is not None else None
        if digest is not None:
            self._note(name, digest, self._age(name))

    def _note(self, name: str, digest: Digest, age: float | None) -> None:
        now, store = trio.current_time(), self._store
        own = store.resolve(name) if store is not None else None
        if own == digest:  # it has been known for as long as the younger of both says
            age = min((known for known in (age, self._age(name)) if known is not None), default=None)
        self._append(name, _Answer(digest, age, now))
        self._next_sweep -= 1
        if self._next_sweep <= 0:
            for each, given in list(self._passed_on.items()):
                # the runtime writes a tag when it has the whole image, so one that is not written yet may still be
                own = store.resolve(each) if store is not None else None
                if now - given[-1].at > _WRITTEN_WITHIN and all(own is None or own != told.digest for told in given):
                    del self._passed_on[each]
            self._next_sweep = _SWEEP_EVERY + len(self._passed_on)

    def _append(self, name: str, answer: _Answer) -> None:
        given = self._passed_on.get(name, ())
        explains = self._explains(name, self._store_age(name))
        self._passed_on[name] = (*(each for each in given if each is explains or each in given[-2:]), answer)

    def not_passed_on(self, name: str) -> None:
        """A client of this machine asks upstream for the tag: if the runtime writes it now, it is as young as that."""
        if name in self._passed_on:
            self._append(name, _Answer(None, None, trio.current_time()))

    def own(self, reference: Reference) -> int | None:
        """Return the age in seconds of the tag in the own store; None if there is none, or it is not known."""
        age = self._age(str(reference))
        return None if age is None else int(age)

    def _age(self, name: str) -> float | None:
        age = self._store_age(name)
        explains = self._explains(name, age)
        if explains is None or explains.digest is None:
            return age
        return None if explains.age is None else explains.age + trio.current_time() - explains.at

    def _store_age(self, name: str) -> float | None:
        return self._store.tag_age(name) if self._store is not None else None

    def _explains(self, name: str, age: float | None) -> _Answer | None:
        """Return the last answer about the present digest, or that there is none, before the runtime wrote its tag.

        ``age``: the one by the store.
        """
        given = self._passed_on.get(name)
        if given is None or age is None or self._store is None:
            return None
        written, own = trio.current_time() - age, self._store.resolve(name)
        return next((each for each in reversed(given) if each.at <= written and each.digest in (None, own)), None)

    def own_is_newer(self, reference: Reference, head: Head) -> bool:
        """Whether this node has another digest under the tag, and a younger one than a peer's ``head``."""
        own = self._store.resolve(str(reference)) if self._store is not None else None
        if own is None or own == head.digest:
            return False
        return _order(self.own(reference)) < _order(head.tag_age)


def _order(age: float | None) -> float:
    return math.inf if age is None else age
