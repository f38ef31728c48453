"""``DnsSource``: peers from DNS.

A name with SRV records gives addresses and ports.  Another name gives addresses, which are used with the port of this
node's own router.

TCP is used first.  Over UDP without EDNS, Consul answers with three random records of many, so each node would join
through others; over TCP it answers with all.  The first three in sorted order are the same for all nodes, which makes
one ring of nodes that start together.  A resolver without TCP is asked over UDP with EDNS.

A new rule about records or resolvers belongs here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import trio

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.join.peer_formats import FIRST, one_line
from spegel_consul.join.polled import SourceError
from spegel_consul.multiaddrs import Address
from spegel_consul.peers import PeerInfo

_QUESTION_WITHIN = 3.0
_EDNS_PAYLOAD = 1232  # bytes that pass everywhere without fragments (DNS flag day 2020)


class DnsSource:
    """Asks for the records of ``domain``; ``port`` is the port of routers that are found by address.

    ``server`` is ``(IP address, port)`` of a resolver, None for the resolvers in /etc/resolv.conf.
    """

    def __init__(self, domain: str, port: int, server: tuple[str, int] | None = None) -> None:
        self._domain = domain.rstrip(".") + "."
        self._port = port
        self._server = server
        self._calls = foreign_files.FileCalls()

    @property
    def name(self) -> str:
        return f"dns {self._domain.rstrip('.')}"

    async def ask(self) -> Sequence[PeerInfo]:
        """The first three peers of each address family, in the order of their addresses. Raises SourceError."""
        endpoints = await self._services()
        if not endpoints:
            endpoints = {(address, self._port) for address in await self._addresses(self._domain)}
        return [PeerInfo(None, (str(Address(host, port)),)) for host, port in _choose(endpoints)]

    async def _services(self) -> set[tuple[str, int]]:
        answer = await self._records(self._domain, "SRV")
        targets = sorted({(record.target.to_text(), record.port) for record in answer or () if record.port})
        given: dict[str, set[str]] = {}
        for rrset in answer.response.additional if answer else ():
            for record in rrset:
                if isinstance(getattr(record, "address", None), str):  # in NSAP records it is another type
                    given.setdefault(rrset.name.to_text(), set()).add(record.address)
        endpoints = {(address, port) for target, port in targets for address in given.get(target, ())}
        waiting = [(target, port) for target, port in targets if target not in given]
        problems: list[str] = []

        async def resolve(target: str, port: int) -> None:
            try:
                endpoints.update((address, port) for address in await self._addresses(target))
            except SourceError as why:
                problems.append(f"{one_line(target.rstrip('.'))}: {why}")

        # further ones are asked only if there is no address yet, because a resolver that drops TCP takes seconds
        for first in range(0, len(waiting), FIRST):
            async with trio.open_nursery() as nursery:
                for target, port in waiting[first : first + FIRST]:
                    nursery.start_soon(resolve, target, port)
            if endpoints:
                break
        if problems and not endpoints:
            raise SourceError(min(problems))  # the same one each time, so that it is logged once
        return endpoints

    async def _addresses(self, name: str) -> set[str]:
        found: set[str] = set()
        problems: list[SourceError] = []

        async def family(kind: str) -> None:
            try:
                found.update(record.address for record in await self._records(name, kind) or ())
            except SourceError as why:
                problems.append(why)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(family, "A")
            nursery.start_soon(family, "AAAA")
        if not found and problems:
            raise problems[0]
        return found

    async def _records(self, name: str, kind: str) -> Any:
        """The answer of dnspython; None if the name has no such record. Raises SourceError."""
        # imported here, because nodes without this kind of bootstrap do not need the library
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        try:
            # in a thread, because it reads resolv.conf
            resolver = await self._calls.run(partial(dns.asyncresolver.Resolver, configure=self._server is None))
        except (dns.exception.DNSException, OSError) as why:
            raise SourceError(f"no resolver: {one_line(in_words(why))}; give one with --dns-bootstrap-server") from None
        if self._server is not None:
            resolver.nameservers, resolver.port = [self._server[0]], self._server[1]
        resolver.use_edns(0, 0, _EDNS_PAYLOAD)
        problem = ""
        for tcp in (True, False):
            try:
                answer = await resolver.resolve(
                    name, kind, tcp=tcp, lifetime=_QUESTION_WITHIN, raise_on_no_answer=False, search=False
                )
            except dns.resolver.NXDOMAIN:
                raise SourceError("the name does not exist (NXDOMAIN)") from None
            except (dns.exception.DNSException, OSError, ValueError) as why:
                problem = one_line(in_words(why))
            else:
                return answer if answer.rrset is not None else None
        raise SourceError(problem)


def _choose(endpoints: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    chosen: list[tuple[str, int]] = []
    for version in (4, 6):
        family = [
            (ip.packed, host, port) for host, port in endpoints if (ip := ipaddress.ip_address(host)).version == version
        ]
        chosen += [(host, port) for _, host, port in sorted(family, key=lambda each: (each[0], each[2]))[:FIRST]]
    return chosen
