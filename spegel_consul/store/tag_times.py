"""Since when each tag stands for its digest. No I/O; the caller gives both clocks.

A runtime writes a time into the record of a name whenever it writes the record. containerd's ``updated_at`` is that
time, and no field of containerd is exactly the time of the digest: ``created_at`` stays when the tag moves, and
``updated_at`` changes with the labels as well. A pull that finds the same digest writes the record again, and then the
tag has just been confirmed. So a time counts

* when a name is seen first,
* when its digest has changed,
* when the record was written again with the same digest and the same labels, which is a pull. A record with other
  labels only is not, because the tag was not asked for then.

Times of a runtime are wall-clock times, and clocks are wrong at times. So a time is converted to the clock of the
event loop once, and corrected by what the store itself has seen: a change that the last complete list did not have
came after that list and not after now. A time in the future, or one that is absurdly long ago, is no time unless the
store saw the change.

A new rule about the age of a tag in the own store belongs here; the rules that compare the ages of several nodes are in
:mod:`spegel_consul.registry.mirror.tags`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from spegel_consul.oci.digest import Digest
from spegel_consul.store.index import ImageRecord

OLDEST = 10 * 366 * 86400.0
"""Seconds; a greater age is an error of a clock, or a date that a build was given (SOURCE_DATE_EPOCH)."""

_SKEW = 2.0  # seconds by which a record may seem to be of the future, because a clock is corrected a little


@dataclass(slots=True)
class _Tag:
    digest: Digest
    labels: tuple[tuple[str, str], ...]
    updated_at: float | None
    since: float | None


class TagTimes:
    """The times of the image records of one runtime, by the names of the records."""

    def __init__(self) -> None:
        self._tags: dict[str, _Tag] = {}
        self._listed = -math.inf
        self.version = 0
        """Another number whenever :meth:`age` counts from another time, because a union compares ages."""

    def listed(self, records: Iterable[ImageRecord], now: float, wall: float) -> None:
        """Take all records of the runtime. ``now`` and ``wall``: the time of the loop and of the day, in seconds."""
        before, self._tags = self._tags, {}
        for record in records:
            if (known := before.get(record.name)) is not None:
                self._tags[record.name] = known
            self.saw(record, now, wall)
        self._listed = now

    def saw(self, record: ImageRecord, now: float, wall: float) -> None:
        """Take one record that may have changed."""
        tag = self._tags.get(record.name)
        digest = record.target.digest
        # as long as the digest and the labels are the same, another time says that the tag was pulled again
        since = self._since(record, now, wall)
        if tag is not None and tag.digest == digest:
            pulled_again = tag.updated_at != record.updated_at and tag.labels == record.labels
            since = since if pulled_again else tag.since
        if tag is None or tag.since != since:
            self.version += 1
        self._tags[record.name] = _Tag(digest, record.labels, record.updated_at, since)

    def drop(self, name: str) -> None:
        """Forget a name, because its record is gone."""
        self._tags.pop(name, None)

    def age(self, name: str, digest: Digest, now: float) -> float | None:
        """Return the seconds since the record ``name`` stands for ``digest``; None if that is not known."""
        tag = self._tags.get(name)
        if tag is None or tag.digest != digest or tag.since is None:
            return None
        return max(0.0, now - tag.since)

    def _since(self, record: ImageRecord, now: float, wall: float) -> float | None:
        """Return the time of the loop at which the record was written, or None."""
        age = math.inf if record.updated_at is None else wall - record.updated_at
        if self._listed > -math.inf:
            return now - min(max(0.0, age), now - self._listed)
        return now - max(0.0, age) if -_SKEW <= age <= OLDEST else None
