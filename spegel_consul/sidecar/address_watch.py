"""``AddressWatch``: notices that an address which this node advertises has left this machine.

A lease of DHCP ends, or an interface gets another address, and nothing fails here: the ports listen on all addresses,
and Consul's agent runs on the same machine. Only peers are led to an address that nobody has, or that another machine
has now. So the addresses of the interfaces are looked at every ten seconds. An address has to be missing twice in a
row, because a network daemon may remove it for a moment.

What the node told its peers, the catalog and the lock can't be changed while it runs. If the program chose the address
and would choose another one now, the sidecar ends, so that its supervisor starts it with that one. It does not end
before there is one, because the next start would fail until then, and supervisors give up. The new address must be of
the same family and interface, and must not have been there at the start. What else the setting fits, as an address of a
bridge of containers, may be of no use to peers, and the lost one usually comes back, such as when a switch has
restarted. If an operator gave the address, another start would change nothing. So in these cases the problem stays
until the address is back, and until then this node does not lead, because new nodes would join through an address that
is not its own.

An address that this machine did not have at the start is never judged, because it is that of a port mapping or of NAT.
A new rule about the loss of an address belongs here; the choice belongs to :mod:`spegel_consul.preflight.node_address`.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
import trio

from spegel_consul.disk.threads import in_thread
from spegel_consul.observable import Observable
from spegel_consul.preflight import node_address
from spegel_consul.preflight.node_address import NoAddress, NodeAddress

log = structlog.get_logger(__name__)

EVERY = 10.0
"""Seconds between two looks at the addresses of this machine."""

_LOOKS = 2  # in a row without the address


class AddressWatch:
    """Watches ``addresses``. ``superseded`` is set when only another start can take the address that replaced one."""

    def __init__(self, addresses: Iterable[NodeAddress]) -> None:
        # of two equal ones the given one counts, because a port may be bound to it, which would fail at another start
        self._addresses = {each.ip: each for each in sorted(addresses, key=lambda each: each.again is None)}
        self._first: dict[str, str] | None = None  # interfaces by address, at the first look
        self._missing: dict[str, int] = {}
        self.observed = Observable[str | None](None)
        """The :attr:`problem`, for tasks that await its change."""
        self.superseded = trio.Event()

    @property
    def problem(self) -> str | None:
        """One line for people that names the address; None if all are there."""
        return self.observed.value

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look every :data:`EVERY` seconds until cancelled."""
        if self._first is None:
            self._first = await _local() or {}
            self._missing = {ip: 0 for ip in self._addresses if ip in self._first}
        task_status.started()
        while True:
            await trio.sleep(EVERY)
            local = await _local()
            if local is not None:
                for ip in self._missing:
                    self._missing[ip] = 0 if ip in local else self._missing[ip] + 1
                await self._judge([ip for ip, looks in self._missing.items() if looks >= _LOOKS], local)

    async def _judge(self, lost: list[str], local: dict[str, str]) -> None:
        before = self.problem
        problem = f"this machine has lost {' and '.join(lost)}, which this node advertises" if lost else None
        self.observed.set(problem)
        if problem is None:
            if before is not None:
                log.info("advertised addresses are back")
            return
        new = [await _chosen_again(self._addresses[ip]) for ip in lost]
        if all(self._replaces(ip, old, local) for ip, old in zip(new, lost, strict=True)):
            log.error("the sidecar ends, to be started again with another address", problem=problem, new=new)
            self.superseded.set()
        elif problem != before:
            log.error("advertised address lost", problem=problem, fix=self._fix(lost))

    def _replaces(self, new: str | None, lost: str, local: dict[str, str]) -> bool:
        first = self._first or {}
        return new in local and new not in first and local[new] == first[lost] and (":" in new) == (":" in lost)

    def _fix(self, lost: list[str]) -> str:
        if any(self._addresses[ip].again is None for ip in lost):
            return "give the address back to this machine, or set another --advertise-addr and start the sidecar again"
        return "give it back, or give its interface a new one: then the sidecar ends, to be started again with that one"


async def _local() -> dict[str, str] | None:
    """The interfaces of this machine by address; None if they can't be read, which proves nothing."""
    try:
        return {str(local.ip): local.interface for local in await in_thread(node_address.local_addresses)}
    except OSError:
        return None


async def _chosen_again(address: NodeAddress) -> str | None:
    if address.again is None:
        return None
    try:
        return await in_thread(address.again)
    except (NoAddress, ValueError, OSError):
        return None
