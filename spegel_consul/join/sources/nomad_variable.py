"""``NomadVarBootstrap``: the holder of the lock on a Nomad variable, for clusters without Consul (Nomad 1.7 or newer).

It elects a bootstrap peer with the lock.  Three things differ from Consul's sessions.  Each attempt to acquire the lock
is a write to the servers' log, even a failed one.  The token of a task can't see whether the variable is locked.  The
lock of a holder that died stays for twice its TTL, and then for the lock-delay.  So followers watch the value of the
variable with a blocking query.  They try to acquire the lock if the value says "vacant", if the variable does not
exist, and otherwise about once a minute.

The rest is as in Consul's election: the holder owns nothing, no node stops while there is no holder, and a failed
question changes nothing.  A lead ends only by a renewal that is answered with 409 or 404, or with the lease.

A node that may read the variable and not write it follows without taking part.

Nomad before 1.7 takes each operation on a lock for a plain write, so each node would believe that it leads.  Before the
first attempt the operation that needs no value is sent without one: only a Nomad without locks asks for the value.

A new rule about this lock belongs here.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

from spegel_consul.consul.api.backoff import Backoff, BlockingIndex
from spegel_consul.consul.election.leader_record import LeaderRecord
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError, variable_path
from spegel_consul.multiaddrs import parse
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

TTL, LOCK_DELAY = 15.0, 10.0
"""Seconds; Nomad allows a TTL of 10 s or more, and ends a lock after twice its TTL."""

TRY_EVERY = 60.0
"""Seconds between attempts to acquire a lock that seems to be held."""

_SPREAD = 1.0  # seconds over which the attempts for a free lock are spread
_RELEASE_WITHIN = 3.0
_DENIED_PAUSE = 10.0  # seconds, because only an operator changes rights, or Nomad's version
_NO_LOCKS = 501


class NomadVarBootstrap:
    """Takes part in the election at variable ``path`` with ``me`` as the record to publish. Raises ValueError."""

    def __init__(
        self,
        client: NomadClient,
        path: str,
        me: LeaderRecord,
        *,
        try_every: float = TRY_EVERY,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._name = path.strip("/ ")
        self._path = variable_path(path)
        self._me = me
        self._try_every = try_every
        self._rng = rng or random.Random()
        self._observed = ObservedPeers(f"nomad-var {self._name}")
        self._lock: str | None = None
        self._lease = 0.0
        self._has_locks = False

    @property
    def problem(self) -> str | None:
        """One line for people that says what does not work; None if there is no problem."""
        return self._observed.problem

    @property
    def leader(self) -> PeerInfo | None:
        """The last known holder of the lock; None before the first one."""
        return self._observed.peers[0] if self._observed.peers else None

    def peers(self) -> Sequence[PeerInfo]:
        """The last known leader, even if it is this node; empty before the first one."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled, then release the lock within 3 s; calls ``started()`` at once."""
        task_status.started()
        try:
            while True:
                await self._follow()
                await self._lead()
        finally:
            await self._release()

    async def _follow(self) -> None:
        """Follow the holder; return when this node has the lock."""
        index, backoff = BlockingIndex(), Backoff(0.5, 15.0, self._rng)
        contended = Backoff(1.0, 30.0, self._rng)
        next_try = trio.current_time() + self._try_every * self._rng.uniform(0.5, 1.5)
        while True:
            wait = max(1.0, min(60.0, next_try - trio.current_time()))
            began = trio.current_time()
            try:
                answered, free = await self._read(index.value, wait)
                if not free and trio.current_time() < next_try:
                    contended.reset()
                    self._observed.set_problem(None)
                    index.advance(answered)
                    await trio.sleep_until(began + 0.5)
                    continue
                if free:
                    await trio.sleep(self._rng.uniform(0.0, _SPREAD))
                    index.reset()
                next_try = trio.current_time() + self._try_every * self._rng.uniform(0.5, 1.5)
                if await self._acquire():
                    self._observed.set_problem(None)
                    return
                self._observed.set_problem(None)
                if free:
                    # the value says "vacant" and the lock is held: its holder died before it wrote, or has just won
                    await trio.sleep(contended.next())
                else:
                    contended.reset()
            except NomadError as why:
                index.reset()
                self._observed.set_problem(str(why) + (_ADVICE.format(path=self._name) if why.status == 403 else ""))
                await trio.sleep(max(backoff.next(), _DENIED_PAUSE if why.status in (403, _NO_LOCKS) else 0.0))
            else:
                backoff.reset()

    async def _lead(self) -> None:
        """Renew the lock; return when it is lost."""
        log.info("nomad variable lock acquired", path=self._name)
        backoff = Backoff(0.5, TTL / 4, self._rng)
        delay = TTL / 2
        while True:
            await trio.sleep(min(delay, max(0.0, self._lease - trio.current_time())))
            began = trio.current_time()
            try:
                with trio.fail_after(max(1.0, TTL / 3)):
                    await self._call("lock-renew", {"Path": self._name, "Lock": {"ID": self._lock}})
            except (NomadError, trio.TooSlowError) as why:
                status = why.status if isinstance(why, NomadError) else 0
                self._observed.set_problem(f"renewing the lock: {str(why) or 'no answer in time'}")
                if status in (404, 409) or trio.current_time() >= self._lease:
                    log.warning("nomad variable lock lost", path=self._name, status=status)
                    self._lock = None
                    return
                delay = backoff.next()
            else:
                self._observed.set_problem(None)
                self._lease, delay = began + TTL, TTL / 2
                backoff.reset()

    async def _read(self, index: int, wait: float) -> tuple[int, bool]:
        """The index to wait on, and whether the value says that the lock is free."""
        params = {"stale": ""} | ({"index": str(index), "wait": f"{wait * 1000:.0f}ms"} if index else {})
        try:
            answered, variable = await self._client.request(
                "GET", self._path, params=params, wait=wait if index else 0.0
            )
        except NomadError as why:
            if why.status == 404:
                return 0, True
            raise
        return answered, self._take(variable)

    def _take(self, variable: Any) -> bool:
        """Store the holder that the value names. True if the value says that the lock is free."""
        items = variable.get("Items") if isinstance(variable, dict) else None
        if not isinstance(items, dict):
            return False
        peer_id, addrs = items.get("peer_id"), items.get("addrs")
        if items.get("state", "held") != "held":
            return True
        if isinstance(peer_id, str) and isinstance(addrs, str):
            routers = tuple(addr for addr in addrs.split() if parse(addr) is not None)
            if peer_id and routers:
                self._observed.set_peers([LeaderRecord(peer_id, routers).to_peer()])
        return False

    async def _require_locks(self) -> None:
        """Raise NomadError if this Nomad has no locks, or if that can't be known now. Nothing is written."""
        if self._has_locks:
            return
        try:
            await self._call("lock-renew", {"Path": self._name, "Lock": {"ID": str(uuid.uuid4())}})
        except NomadError as why:
            if why.status == 400 and "missing required Items" in str(why):
                raise NomadError(_WITHOUT_LOCKS, _NO_LOCKS) from None
            if not 400 <= why.status < 500 or why.status == 429:
                raise
        self._has_locks = True

    async def _acquire(self) -> bool:
        await self._require_locks()
        began = trio.current_time()
        lock = {"TTL": f"{TTL:g}s", "LockDelay": f"{LOCK_DELAY:g}s"}
        try:
            variable = await self._call(
                "lock-acquire", {"Path": self._name, "Items": self._items("held"), "Lock": lock}
            )
        except NomadError as why:
            if why.status == 409:  # the answer has the current variable
                self._take(why.document)
                return False
            raise
        try:
            self._lock = str(variable["Lock"]["ID"])
        except (KeyError, TypeError):
            raise NomadError("the answer to lock-acquire has no lock in it") from None
        self._lease = began + TTL
        self._observed.set_peers([self._me.to_peer()])
        return True

    async def _release(self) -> None:
        """Write "vacant", then release the lock; the value stays and tells other nodes not to wait."""
        if self._lock is None:
            return
        with trio.move_on_after(_RELEASE_WITHIN, shield=True) as limit:
            lock = {"ID": self._lock}
            try:
                await self._call(None, {"Path": self._name, "Items": self._items("vacant"), "Lock": lock})
                await self._call("lock-release", {"Path": self._name, "Lock": lock})
            except NomadError as why:
                log.warning("could not release the lock; it ends with its TTL", error=str(why))
        if limit.cancelled_caught:
            log.warning("could not release the lock in time; it ends with its TTL", seconds=_RELEASE_WITHIN)
        self._lock = None

    async def _call(self, operation: str | None, body: dict[str, object]) -> Any:
        params = {operation: ""} if operation else {}
        return (await self._client.request("PUT", self._path, params=params, body=body))[1]

    def _items(self, state: str) -> dict[str, str]:
        """The items of the variable. Its values are texts, so the addresses are separated by spaces."""
        me = self._me
        texts = {
            "state": state,
            "peer_id": me.peer_id,
            "addrs": " ".join(me.addrs),
            "node": me.node,
            "http": me.http,
            "registry": me.registry,
            "version": me.version,
            "alloc_id": me.alloc_id,
            "since": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return {name: text for name, text in texts.items() if text}


_WITHOUT_LOCKS = "this Nomad has no locks on variables (1.7 has): use --bootstrap-kind=nomad-service"
_ADVICE = " (the token needs read and write on variable {path}: see jobs/acl/)"
