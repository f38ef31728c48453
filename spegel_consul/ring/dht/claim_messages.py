"""The wire format of claims: a report to the keeper of a group, and its verdict.

Protobuf by hand, as in ``messages``, each message behind its length as a varint:

    Claim   { bytes group = 1; bytes lost = 2; uint32 why = 3; bool serves = 4; uint64 have = 5; bool working = 6;
              repeated bytes behind = 7; bytes held = 8; bool near_only = 9; uint64 left = 10; bool declines = 11; }
    Verdict { uint32 what = 1; repeated Peer sources = 2; uint32 again_ms = 3; bytes group = 4;
              bool slow_upstream = 5; }

A verdict repeats its group, so that an answer to another question is noticed.  Unknown fields are skipped, and the only
error that bytes can cause is a WireError.

A new field of these messages belongs here, with its fuzz test.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from spegel_consul.peers import MAX_PEER_ID
from spegel_consul.ring.dht.claim_reports import MAX_BEHIND, MAX_SOURCES, Report, What, Why
from spegel_consul.ring.dht.messages import WireError, WirePeer, decode_peer, encode_peer, fields, frame, uvarint

MAX_CLAIM_MESSAGE = 4 << 10
"""Longest accepted message, in bytes."""

GROUP_LENGTH = 32
"""Length of the key of a group, in bytes."""

_MOST_BYTES = 1 << 62
_LEAST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


class WireVerdict(NamedTuple):
    """A verdict with the addresses of its sources; ``again`` is seconds."""

    group: bytes
    what: What
    sources: tuple[WirePeer, ...] = ()
    again: float = 2.0
    slow_upstream: bool = False


def encode_claim(group: bytes, report: Report) -> bytes:
    """A framed report about ``group``."""
    body = bytearray(b"\x0a" + frame(group))
    if report.lost:
        body += b"\x12" + frame(report.lost)
    if report.why:
        body += b"\x18" + uvarint(report.why)
    if report.serves:
        body += b"\x20\x01"
    if report.have:
        body += b"\x28" + uvarint(report.have)
    if report.working:
        body += b"\x30\x01"
    for peer in report.behind[:MAX_BEHIND]:
        body += b"\x3a" + frame(peer)
    if report.held:
        body += b"\x42" + frame(report.held)
    if report.near_only:
        body += b"\x48\x01"
    if report.left:
        body += b"\x50" + uvarint(report.left)
    if report.declines:
        body += b"\x58\x01"
    return frame(bytes(body))


def decode_claim(body: bytes) -> tuple[bytes, Report]:
    """The group and the report of a message without its length. Raises WireError."""
    group = lost = held = b""
    behind: list[bytes] = []
    numbers = dict.fromkeys((3, 4, 5, 6, 9, 10, 11), 0)
    for field, value in fields(body):
        if isinstance(value, int):
            if field in numbers:
                numbers[field] = value
        elif field == 1:
            group = value
        elif field == 2:
            lost = _peer(value)
        elif field == 7 and len(behind) < MAX_BEHIND:
            behind.append(_peer(value))
        elif field == 8:
            held = _peer(value)
    _check_group(group)
    why = Why(numbers[3]) if numbers[3] in Why._value2member_map_ else Why.NONE
    have, left = min(numbers[5], _MOST_BYTES), min(numbers[10], _MOST_BYTES)
    serves, working, near_only, declines = (bool(numbers[each]) for each in (4, 6, 9, 11))
    return group, Report(lost, why, serves, have, working, tuple(behind), held, near_only, left, declines)


def encode_verdict(verdict: WireVerdict) -> bytes:
    """A framed verdict; sources beyond MAX_CLAIM_MESSAGE are left out."""
    fixed = b"\x18" + uvarint(round(verdict.again * 1000)) + b"\x22" + frame(verdict.group)
    if verdict.slow_upstream:
        fixed += b"\x28\x01"
    sources = b"".join(_sources(verdict.sources, MAX_CLAIM_MESSAGE - len(fixed) - 2))
    return frame(b"\x08" + uvarint(verdict.what) + sources + fixed)


def decode_verdict(body: bytes) -> WireVerdict:
    """A verdict without its length. Raises WireError."""
    what = pause = slow = 0
    group = b""
    sources: list[WirePeer] = []
    for field, value in fields(body):
        if field == 1 and isinstance(value, int):
            what = value
        elif field == 2 and isinstance(value, bytes) and len(sources) < MAX_SOURCES:
            sources.append(decode_peer(value))
        elif field == 3 and isinstance(value, int):
            pause = value
        elif field == 4 and isinstance(value, bytes):
            group = value
        elif field == 5 and isinstance(value, int):
            slow = value
    _check_group(group)
    try:
        kind = What(what)
    except ValueError:
        raise WireError(f"verdict {what} is none of this protocol") from None
    if kind is What.FOLLOW and not sources:
        raise WireError("the verdict to follow names no source")
    named = tuple(sources) if kind is What.FOLLOW else ()
    again = min(_LONGEST_PAUSE, max(_LEAST_PAUSE, pause / 1000))
    return WireVerdict(group, kind, named, again, bool(slow))


def _sources(peers: Iterable[WirePeer], room: int) -> Iterable[bytes]:
    for peer in peers:
        encoded = b"\x12" + frame(encode_peer(peer))
        room -= len(encoded)
        if room < 0:
            return
        yield encoded


def _peer(value: bytes) -> bytes:
    if not 0 < len(value) <= MAX_PEER_ID:
        raise WireError(f"a peer id of {len(value)} bytes is invalid")
    return value


def _check_group(group: bytes) -> None:
    if len(group) != GROUP_LENGTH:
        raise WireError(f"the key of a group has {len(group)} bytes instead of {GROUP_LENGTH}")
