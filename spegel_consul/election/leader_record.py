"""``LeaderRecord``: the value of the leader key.

People read it (``consul kv get``), and so do ``jq``, templates and other versions of this program.  So it is JSON,
indented, with a newline at its end, and fields are only ever added.  Any program with a token may write it, so reading
it never raises.  A released lock keeps a value with the state "vacant": it means that there is no lock-delay, so the
lock can be acquired at once.

A new field that a leader publishes belongs here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.multiaddrs import parse, split_peer_id
from spegel_consul.peers import PeerInfo

SCHEMA = 1
FLAGS = 0x2DDCCBC058A50C18
"""The flags that Consul's Go lock sets on its keys; such tools then refuse to overwrite this key."""


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """The record of the elected bootstrap peer, published by itself.

    ``addrs`` are multiaddrs of its router that end in ``/p2p/<peer_id>``; ``http`` is the URL of its peer info, and
    ``registry`` the URL of its registry; ``since`` is UTC, ``2026-11-23T16:34:43Z``.
    """

    peer_id: str
    addrs: tuple[str, ...]
    node: str | None = None
    http: str | None = None
    registry: str | None = None
    version: str | None = None
    alloc_id: str | None = None
    since: str | None = None
    session: str | None = None

    @property
    def identity(self) -> tuple[str, frozenset[str]]:
        """The peer id and the addresses: the part whose change a router reacts to."""
        return self.peer_id, frozenset(self.addrs)

    def to_json(self, *, session: str, since: str) -> bytes:
        """The value to write with the acquisition of the lock."""
        held = asdict(replace(self, session=session, since=since))
        return _dump({"schema": SCHEMA, "state": "held", **held})

    def known(self) -> dict[str, object]:
        """The fields that are set, for people and programs."""
        fields = {**asdict(self), "addrs": list(self.addrs)}
        return {name: value for name, value in fields.items() if value is not None}

    def to_peer(self) -> PeerInfo:
        """The router of the leader."""
        return PeerInfo(self.peer_id, tuple(split_peer_id(addr)[0] for addr in self.addrs))

    @classmethod
    def parse(cls, value: bytes) -> LeaderRecord | None:
        """The record in ``value``; None for a vacant mark, for other data, and without a usable multiaddr."""
        try:
            fields = json.loads(value)
            peer_id, addrs = fields["peer_id"], fields["addrs"]
            if fields.get("state", "held") != "held" or not isinstance(peer_id, str) or not peer_id:
                return None
            usable = tuple(addr for addr in addrs if isinstance(addr, str) and parse(addr) is not None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if not usable:
            return None
        texts = ("node", "http", "registry", "version", "alloc_id", "since", "session")
        known = {name: fields[name] for name in texts if isinstance(fields.get(name), str)}
        return cls(peer_id, usable, **known)


def vacant(*, released_by: str | None, at: str) -> bytes:
    """The value to write with the release of the lock."""
    return _dump({"schema": SCHEMA, "state": "vacant", "released_by": released_by, "at": at})


def utc_now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _dump(fields: dict[str, object]) -> bytes:
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(present, indent=2).encode() + b"\n"
