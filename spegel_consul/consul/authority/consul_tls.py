"""``ConsulTls``: TLS between sidecars with certificates of Consul's own authority.

Consul signs certificates for services. The agent makes the key, has it signed by the servers, keeps both in its memory,
and renews them - but only while a blocking query waits for the next one. So two tasks wait: for the next certificate
and for the next list of authorities. A new list comes at once; a certificate of a new authority comes up to 30 s later.
Until then the old one is good, because the old authority stays in the list, and the new certificate brings the new
authority signed by the old one.

An answer is evidence, and its absence is not: after a failed query, or an answer that can't be used, the last
certificate stays until it expires. Without a valid one the contexts are None.

A new rule about the questions to Consul, or about what is said of their failure, belongs here.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from spegel_consul.backoff import Backoff, BlockingIndex
from spegel_consul.consul.api.client import ConsulClient, Leaf, Roots
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    ConnectDisabled,
    ConsulError,
    ConsulUnavailable,
    RateLimited,
    ServerError,
)
from spegel_consul.consul.authority.connect_identity import Identity, IdentityError
from spegel_consul.consul.authority.kept_identity import KeptIdentity
from spegel_consul.disk.threads import in_thread
from spegel_consul.http.peer_tls import Encryption, PeerLinks
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

SERVICE = "spegel"
"""The service that all sidecars have a certificate of."""

ENABLE_CONNECT = "connect { enabled = true }   # in the configuration of all Consul servers"
"""What an operator adds if Consul has no authority."""

RIGHT = f'service "{SERVICE}" {{ policy = "write" }}'
"""The right that a certificate needs; the registration of the service needs it too."""

_OUTAGES = (ConsulUnavailable, RateLimited, ServerError)
_SPACING = 0.5  # least seconds between two queries
_WAIT = 60.0  # seconds for which a query blocks
_FIRST = 3.0  # seconds for which the start-up waits for a certificate
_LOOK_EVERY = 60.0  # seconds
_LATE = 60.0  # seconds that a clock may be behind the start of a certificate


class ConsulTls:
    """Certificates of :data:`SERVICE`, followed by :meth:`run`.

    ``data_dir``: where the last certificate is kept. ``clock``: Unix time. Implements
    :class:`spegel_consul.http.peer_tls.PeerTls`.
    """

    verifies_clients = True

    def __init__(
        self,
        client: ConsulClient,
        encryption: Encryption,
        data_dir: Path | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.encryption = encryption
        self.links = PeerLinks()
        self._client = client
        self._kept = KeptIdentity(data_dir)
        self._clock = clock
        self._leaf: Leaf | None = None
        self._roots: Roots | None = None
        self._identity: Identity | None = None
        self._taking = trio.Lock()
        self._has_identity = trio.Event()
        self._failures: dict[str, str] = {}
        self._outages: dict[str, str] = {}
        self._report = ProblemReport(log, "certificates hindered", "certificates unhindered")

    @property
    def expires(self) -> float | None:
        """Unix time at which the certificate expires; None without one."""
        return self._identity.ends if self._identity is not None else None

    @property
    def problem(self) -> str | None:
        """One line for people: there is no certificate, or it is not renewed; None if all is well.

        An outage of Consul alone is no problem until the certificate should have been renewed.
        """
        now, identity = self._clock(), self._identity
        why = "; ".join(dict.fromkeys([*self._failures.values(), *self._outages.values()])) or "Consul sent no other"
        if identity is None:
            return f"no certificate for peers: {why}"
        if not identity.is_valid(now):
            return f"the certificate for peers has expired: {why}"
        if identity.begins - now > _LATE:
            return (
                f"this node's clock is up to {_hours(identity.begins - now)} behind the start of its certificate for "
                "peers, so it refuses those of peers too: set the clock"
            )
        if identity.is_overdue(now):
            return f"the certificate for peers expires within {_hours(identity.ends - now)} and is not renewed: {why}"
        return f"the certificate for peers is not renewed: {why}" if self._failures else None

    def server(self) -> ssl.SSLContext | None:
        """The context for an accepted connection; None without a valid certificate."""
        identity = self._valid()
        return identity.server if identity is not None else None

    def client(self) -> ssl.SSLContext | None:
        """The context for a connection to a peer; None without a valid certificate."""
        identity = self._valid()
        return identity.client if identity is not None else None

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a verified certificate is that of a sidecar of this cluster, in whichever datacenter."""
        return self._identity is not None and self._identity.accepts(certificate, SERVICE)

    def _valid(self) -> Identity | None:
        identity = self._identity
        return identity if identity is not None and identity.is_valid(self._clock()) else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow Consul until cancelled; ``started()`` with the first certificate, or after 3 s without one."""
        if self._identity is None:
            await self._take_kept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, "leaf", self._ask_leaf)
            nursery.start_soon(self._follow, "roots", self._ask_roots)
            nursery.start_soon(self._look)
            with trio.move_on_after(_FIRST):
                await self._has_identity.wait()
            self._report.tell(self.problem)
            task_status.started()

    async def _take_kept(self) -> None:
        kept = await self._kept.load()
        if kept is None:
            return
        try:
            identity = await in_thread(partial(Identity.make, *kept))
        except IdentityError as exc:
            log.warning("the kept certificate is not used", problem=str(exc))
            return
        if identity.is_valid(self._clock()):
            self._leaf, self._roots = kept
            self._use(identity)

    async def _look(self) -> None:
        while True:
            await trio.sleep(_LOOK_EVERY)
            self._report.tell(self.problem)

    async def _ask_leaf(self, index: int) -> int:
        answered, leaf = await self._client.connect_leaf(SERVICE, index, _WAIT)
        await self._take(leaf=leaf)
        return answered

    async def _ask_roots(self, index: int) -> int:
        answered, roots = await self._client.connect_roots(index, _WAIT)
        await self._take(roots=roots)
        return answered

    async def _follow(self, what: str, ask: Callable[[int], Awaitable[int]]) -> None:
        index, backoff = BlockingIndex(), Backoff(_SPACING, 15.0, random.Random())
        while True:
            began = trio.current_time()
            try:
                answered = await ask(index.value)
            except (ConsulError, IdentityError) as exc:
                index.reset()
                self._failed(what, exc)
                await trio.sleep(backoff.next())
                continue
            backoff.reset()
            index.advance(answered)
            self._failures.pop(what, None)
            self._outages.pop(what, None)
            if self._identity is not None:
                self._report.tell(self.problem)
            await trio.sleep_until(began + _SPACING)

    def _failed(self, what: str, exc: ConsulError | IdentityError) -> None:
        outage = isinstance(exc, _OUTAGES) and not isinstance(exc, ConnectDisabled)
        self._failures.pop(what, None)
        self._outages.pop(what, None)
        (self._outages if outage else self._failures)[what] = _explained(exc)
        if self._identity is not None:
            self._report.tell(self.problem)

    async def _take(self, *, leaf: Leaf | None = None, roots: Roots | None = None) -> None:
        """Use an answer together with the last answer of the other kind. Raises IdentityError; then it is dropped."""
        async with self._taking:
            leaf, roots = leaf or self._leaf, roots or self._roots
            if leaf is not None and roots is not None and (leaf, roots) != self._used():
                self._use(await in_thread(partial(Identity.make, leaf, roots)))
                await self._kept.save(leaf, roots)
            self._leaf, self._roots = leaf, roots

    def _used(self) -> tuple[Leaf, Roots] | None:
        return (self._identity.leaf, self._identity.roots) if self._identity is not None else None

    def _use(self, identity: Identity) -> None:
        self._identity = identity
        self._has_identity.set()
        leaf, roots = identity.leaf, identity.roots
        log.info("certificate", serial=leaf.serial, until=leaf.valid_before, authorities=len(roots.certificates))


def _explained(exc: ConsulError | IdentityError) -> str:
    if isinstance(exc, ConnectDisabled):
        return f"Consul has no authority, add {ENABLE_CONNECT}"
    if isinstance(exc, AccessDenied):
        return f"{exc}, the token needs {RIGHT}"
    return str(exc)


def _hours(seconds: float) -> str:
    """A time in steps so large that it is not a new problem each minute."""
    return f"{seconds // 3600 + 1:.0f} h"
