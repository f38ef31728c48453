"""Byte ranges of RFC 9110, section 14: what a client asks for, and what that is of content whose size is known.

A header is parsed before anybody knows the size, because a node may have to ask a peer for the content. Ranges that
overlap or touch become one, so no byte is sent twice. A rule about which ranges are heeded belongs here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.errors import RangeInvalid, TooManyRanges

MOST_RANGES = 64
"""Ranges of one request; more are refused."""

_UNIT = re.compile(r"\s*bytes\s*=(.*)\Z", re.IGNORECASE | re.ASCII | re.DOTALL)
_SPEC = re.compile(r"[ \t]*(\d*)[ \t]*-[ \t]*(\d*)[ \t]*\Z", re.ASCII)
_MOST = 1 << 62  # bytes: no content is so large, and every peer's integers can hold it


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes ``[start, stop)`` of content of ``size`` bytes."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The value of a Content-Range header field."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"

    @property
    def header(self) -> str:
        """The value of a Range header field that asks for it."""
        return f"bytes={self.start}-{self.stop - 1}"


@dataclass(frozen=True, slots=True)
class _Spec:
    """``first-last``, both inclusive; without ``last`` to the end, without ``first`` the ``last`` bytes of it all."""

    first: int | None
    last: int | None

    def __str__(self) -> str:
        return f"{'' if self.first is None else self.first}-{'' if self.last is None else self.last}"

    def within(self, size: int) -> tuple[int, int]:
        """The start and the stop in content of ``size`` bytes; it has none of them unless start < stop."""
        if self.first is None:
            return max(size - (self.last or 0), 0), size
        return self.first, size if self.last is None else min(self.last + 1, size)


@dataclass(frozen=True, slots=True)
class Ranges:
    """What a Range header asks for: one or several ranges, in the order in which they are to be sent."""

    specs: tuple[_Spec, ...]

    @property
    def several(self) -> bool:
        return len(self.specs) > 1

    @property
    def header(self) -> str:
        """The value of a Range header field that asks for the same."""
        return "bytes=" + ",".join(map(str, self.specs))

    @property
    def probes(self) -> tuple[Ranges, ...]:
        """Single ones of them, of which at least one exists in any content in which one of all exists.

        The first is the one that is to be sent first.
        """
        starts = [spec for spec in self.specs if spec.first is not None]
        ends = [spec for spec in self.specs if spec.first is None]
        likely = [self.specs[0]]
        if starts:
            likely.append(min(starts, key=lambda spec: spec.first or 0))
        if ends:
            likely.append(max(ends, key=lambda spec: spec.last or 0))
        return tuple(Ranges((spec,)) for spec in dict.fromkeys(likely))

    def within(self, size: int) -> tuple[ByteRange, ...]:
        """What there is of them in content of ``size`` bytes, at least one. Raises RangeInvalid if it is nothing."""
        spans = ((*spec.within(size), place) for place, spec in enumerate(self.specs))
        found = _coalesced(span for span in spans if span[0] < span[1])
        if not found:
            raise RangeInvalid(size)
        return tuple(ByteRange(start, stop, size) for start, stop, _ in found)


def parse_ranges(header: str | None) -> Ranges | None:
    """The ranges that a Range header asks for, or None to send all of the content.

    A malformed header and another unit are ignored, as section 14.2 allows; so is ``bytes=0-``, which asks for all.
    To that containerd's parallel fetch takes 206 for a promise that this server will have each other piece too, and
    fails the pull if it breaks; after a 200 it reads one stream, which it can resume elsewhere.

    Raises TooManyRanges if there are more than :data:`MOST_RANGES`.
    """
    match = _UNIT.match(header) if header else None
    if match is None:
        return None
    # a list may have empty elements (section 5.6.1)
    elements = [element for element in match[1].split(",") if element.strip(" \t")]
    specs = []
    for element in elements:
        spec = _parse(element)
        if spec is None:
            return None
        specs.append(spec)
    if len(specs) > MOST_RANGES:
        raise TooManyRanges(f"{len(specs)} ranges in one request: ask for at most {MOST_RANGES}, or for one at a time")
    spans: list[tuple[int, int, int]] = []
    placed: list[tuple[int, _Spec]] = []
    for place, spec in enumerate(specs):
        if spec.first is None:
            placed.append((place, spec))
        else:
            spans.append((spec.first, _MOST if spec.last is None else spec.last + 1, place))
    for start, stop, place in _coalesced(spans):
        if (start, stop) == (0, _MOST):
            return None
        placed.append((place, _Spec(start, None if stop == _MOST else stop - 1)))
    return Ranges(tuple(spec for _, spec in sorted(placed, key=lambda each: each[0]))) if placed else None


def _parse(element: str) -> _Spec | None:
    """One range, in numbers below 2**62, or None if it is malformed."""
    match = _SPEC.match(element)
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first:
        return _Spec(None, min(_number(last), _MOST)) if last else None
    start, end = min(_number(first), _MOST - 1), None
    if last:
        # numbers of any length are compared before they are made smaller
        if _order(last) < _order(first):
            return None
        end = _number(last)
    return _Spec(start, end if end is not None and end < _MOST - 1 else None)


def _number(digits: str) -> int:
    """The number, or a larger one than any size: int() takes long ones badly."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 20 else _MOST


def _order(digits: str) -> tuple[int, str]:
    digits = digits.lstrip("0")
    return len(digits), digits


def _coalesced(spans: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """``(start, stop, place)`` with those that overlap or touch made one, in the order of their places."""
    merged: list[tuple[int, int, int]] = []
    for start, stop, place in sorted(spans):
        if merged and start <= merged[-1][1]:
            begin, end, earlier = merged[-1]
            merged[-1] = begin, max(end, stop), min(earlier, place)
        else:
            merged.append((start, stop, place))
    return sorted(merged, key=lambda span: span[2])
