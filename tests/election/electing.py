"""Elections in the states in which tests begin."""

from __future__ import annotations

import random

from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.api.consul_errors import ConsulUnavailable
from spegel_consul.consul.consul_lock import RULES
from spegel_consul.election.election_events import (
    Acquire,
    Acquired,
    CreateSession,
    KeyRead,
    ReadKey,
    SessionCreated,
    Started,
)
from spegel_consul.election.election_view import ElectionSettings, State
from spegel_consul.election.leader_record import LeaderRecord, vacant
from spegel_consul.election.lock_store import LockRules
from spegel_consul.election.state_machine import Election

ME = LeaderRecord("me", ("/ip4/10.0.0.1/tcp/1/p2p/me",), node="n1")
OTHER = LeaderRecord("other", ("/ip4/10.0.0.2/tcp/1/p2p/other",), node="n2")
DOWN = ConsulUnavailable("refused")


def held(by: str, record: LeaderRecord = OTHER, index: int = 20) -> KVEntry:
    return KVEntry("spegel/leader", record.to_json(session=by, since=""), by, index)


def free(record: LeaderRecord | None = None, index: int = 30) -> KVEntry:
    value = record.to_json(session="gone", since="") if record else vacant(released_by="n2", at="")
    return KVEntry("spegel/leader", value, None, index)


def begin(rules: LockRules = RULES, **changes: object) -> Election:
    election = Election(ElectionSettings(**changes), rules, ME, random.Random(1))
    assert election.handle(Started(), 0) == (ReadKey(1, 0, 60.0),)
    return election


def owning(rules: LockRules = RULES, **changes: object) -> Election:
    """Has a session, has read that the key is still free, and asks for the lock."""
    election = begin(rules, jitter=0, **changes)
    [create] = election.handle(KeyRead(1, 5, None), 0)
    assert isinstance(create, CreateSession)
    election.handle(SessionCreated("s", 0), 0)
    assert election.handle(KeyRead(2, 5, None), 0) == (Acquire("s"),)
    return election


def leading(rules: LockRules = RULES, **changes: object) -> Election:
    election = owning(rules, **changes)
    assert election.handle(Acquired(True), 0) == (ReadKey(3, 0, 60.0, True),)
    assert election.view.state is State.CANDIDATE  # not before it was read back
    [read] = election.handle(KeyRead(3, 9, held("s", ME, 9)), 0)
    assert (read.number, read.index) == (4, 9)
    assert 5 <= read.wait <= 15  # a leader doesn't trust a silent connection for a minute
    assert (election.view.state, election.view.epoch, election.view.leader) == (State.LEADER, 9, ME)
    return election
