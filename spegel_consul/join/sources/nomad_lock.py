"""``NomadLock``: the lock on a Nomad variable, for an election without Consul (Nomad 1.7 or newer).

Nomad has no sessions, and the token of a task can't see whether a variable is locked.  So a session is a name that this
process gives itself, and the holder writes it into the variable: a read shows the session of the last holder, which may
be dead.  The lock of a holder that died stays for twice its TTL, and then for the lock-delay.  Each attempt to acquire
the lock is a write to the servers' log, even a refused one.  A renewal that is answered with 409 or 404 ends the lock.

Only the answer to the acquisition has the id of the lock.  If it is lost, the lock can't be renewed, and a process that
starts again can't release the lock of its former one; both locks end by their TTL.

A node that may read the variable and not write it follows without taking part.

Nomad before 1.7 takes each operation on a lock for a plain write, so each node would believe that it leads.  Before the
first attempt the operation that needs no value is sent without one: only a Nomad without locks asks for the value.

A new rule about this lock belongs here; a new decision of the election belongs to ``election/state_machine``.
"""

from __future__ import annotations

import json
import math
import random
import uuid
from typing import Any

import trio

from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import LeaderRecord, utc_now
from spegel_consul.election.lock_store import LockRules, LockStore, NoLocks, NotPermitted, SessionEnded
from spegel_consul.join.sources.elected_leader import ElectedBootstrap
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError, variable_path
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.observable import Observable

TTL, LOCK_DELAY = 15.0, 10.0
"""Seconds; Nomad allows a TTL of 10 s or more, and ends a lock after twice its TTL."""

RULES = LockRules(ends_early=math.inf, try_held=60.0, refusal_costs=True, probes=False)

_SPREAD = 1.0
"""Seconds over which the attempts for a free lock are spread; the number of nodes is not known."""
_NODES = 25  # of which that is the time: see acquisition.SPACING
_WITHOUT_LOCKS = "this Nomad has no locks on variables (1.7 has): use --bootstrap-kind=nomad-service"
_REFUSED = (400, 404, 409)  # by a Nomad that looks for the lock; any other answer says nothing of locks
_SPACING = 0.5
"""Seconds between two blocking reads: a proxy may strip the index, and then each is answered at once."""
_UNKNOWN = "unknown"  # the session in a value without one


class NomadPermissionDenied(NomadError, NotPermitted):
    """401 or 403: the token lacks a right, or is none."""


class NomadWithoutLocks(NomadError, NoLocks):
    """This Nomad is older than locks on variables."""


class NomadLockLost(NomadError, SessionEnded):
    """The lock has ended, or is another's."""


@dataclass(frozen=True, slots=True)
class Variable:
    """The variable as the election reads it."""

    value: bytes
    session: str | None
    modify_index: int


class NomadLock(LockStore):
    """The lock on the variable at ``path``. Raises ValueError."""

    def __init__(self, client: NomadClient, path: str, rules: LockRules = RULES) -> None:
        self._path = variable_path(path)
        super().__init__(ElectionSettings(path.strip("/ "), TTL, LOCK_DELAY, jitter=_SPREAD), rules)
        self._client = client
        self._session: str | None = None
        self._lock: str | None = None
        self._locking: str | None = None  # the session that the lock was acquired for
        self._has_locks = False
        self._read_at = -math.inf

    async def read(self, index: int, wait: float, *, consistent: bool) -> tuple[int, Variable | None]:
        params = {} if consistent else {"stale": ""}
        if index:
            await trio.sleep_until(self._read_at + _SPACING)
            self._read_at = trio.current_time()
            params |= {"index": str(index), "wait": f"{wait * 1000:.0f}ms"}
        try:
            answered, variable = await self._request("GET", params=params, wait=wait if index else 0.0)
        except NomadError as why:
            if why.status == 404:
                return why.index, None
            raise
        return answered, self._variable(variable)

    async def create_session(self, me: LeaderRecord, ttl: float) -> tuple[str, float]:
        self._session, self._lock, self._locking = str(uuid.uuid4()), None, None
        return self._session, trio.current_time()

    async def acquire(self, session: str, me: LeaderRecord) -> bool:
        await self._require_locks()
        lock = {"TTL": f"{TTL:g}s", "LockDelay": f"{LOCK_DELAY:g}s"}
        try:
            variable = await self._put("lock-acquire", lock, self._items("held", me))
        except NomadError as why:
            if why.status == 409:
                return False
            raise
        try:
            self._lock = str(variable["Lock"]["ID"])
        except (KeyError, TypeError):
            raise NomadError("the answer to lock-acquire has no lock in it") from None
        self._locking = session
        return True

    async def renew(self, session: str, within: float) -> None:
        """Renew the lock; a session that has not had it is only a name, so the servers are asked for the value."""
        lock = self._lock
        if lock is None and self._locking == session:
            raise NomadLockLost("the lock has ended")
        try:
            with trio.fail_after(within):
                await (self.read(0, 0.0, consistent=False) if lock is None else self._put("lock-renew", {"ID": lock}))
        except trio.TooSlowError:
            raise NomadError(f"no answer within {within:g} s") from None
        except NomadError as why:
            if lock is None or why.status not in (404, 409):
                raise
            if self._lock == lock:  # else a later session has another lock by now
                self._lock = None
            raise NomadLockLost(str(why), why.status) from None

    async def destroy(self, session: str) -> None:
        """Forget a session that has not got the lock: no other process knows it."""
        if session == self._session:
            self._session = self._lock = None

    async def resign(self, session: str, me: LeaderRecord) -> None:
        """Write "vacant", then release the lock; the value stays and tells other nodes not to wait."""
        if self._lock is None:
            return
        lock, items = {"ID": self._lock}, self._items("vacant", me)
        self._lock = None
        await self._put(None, lock, items)
        await self._put("lock-release", lock)

    async def _require_locks(self) -> None:
        """Raise NomadError if this Nomad has no locks, or if that can't be known now. Nothing is written."""
        if self._has_locks:
            return
        try:
            await self._put("lock-renew", {"ID": str(uuid.uuid4())})
        except NomadError as why:
            if why.status == 400 and "missing required Items" in str(why):
                raise NomadWithoutLocks(_WITHOUT_LOCKS) from None
            if why.status not in _REFUSED:
                raise
        self._has_locks = True

    async def _put(self, operation: str | None, lock: dict[str, str], items: dict[str, str] | None = None) -> Any:
        body = {"Path": self.settings.key, "Lock": lock} | ({"Items": items} if items else {})
        return (await self._request("PUT", params={operation: ""} if operation else {}, body=body))[1]

    async def _request(
        self, method: str, *, params: dict[str, str], body: object = None, wait: float = 0.0
    ) -> tuple[int, Any]:
        try:
            return await self._client.request(method, self._path, params=params, body=body, wait=wait)
        except NomadError as why:
            if why.status not in (401, 403):
                raise
            advice = f"(the token needs read and write on variable {self.settings.key}: see jobs/acl/)"
            raise NomadPermissionDenied(f"{why} {advice}", why.status) from None

    def _variable(self, answer: Any) -> Variable:
        """The variable of an answer. Without a state that says otherwise it counts as held."""
        fields = answer if isinstance(answer, dict) else {}
        items, index = fields.get("Items"), fields.get("ModifyIndex")
        texts = {name: text for name, text in (items.items() if isinstance(items, dict) else ()) if type(text) is str}
        value = json.dumps({**texts, "addrs": texts.get("addrs", "").split()}).encode()
        session = texts.get("session") or _UNKNOWN
        if session == self._session and self._lock is None:
            session = _UNKNOWN  # the answer to the acquisition was lost, so this lock can't be renewed
        return Variable(
            value,
            session if texts.get("state", "held") == "held" else None,
            index if isinstance(index, int) else 0,
        )

    def _items(self, state: str, me: LeaderRecord) -> dict[str, str]:
        """The items of the variable. Its values are texts, so the addresses are separated by spaces."""
        known = me.known() | {"addrs": " ".join(me.addrs), "session": self._session, "since": utc_now()}
        return {"state": state} | {name: str(text) for name, text in known.items() if text}


class NomadVarBootstrap(ElectedBootstrap):
    """Takes part in the election at variable ``path`` with ``me`` as the record to publish. Raises ValueError.

    ``obstacle``: see Candidate.
    """

    def __init__(
        self,
        client: NomadClient,
        path: str,
        me: LeaderRecord,
        *,
        rules: LockRules = RULES,
        obstacle: Observable[str | None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        lock = NomadLock(client, path, rules)
        super().__init__(Candidate(lock, me, cluster_size=lambda: _NODES, obstacle=obstacle, rng=rng))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled, then release the lock within 3 s; calls ``started()`` at once."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.candidate.run)
            await super().run(task_status=task_status)
