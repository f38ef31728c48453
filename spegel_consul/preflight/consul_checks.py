"""Checks of Consul: its answer, its leader, its clock and the rights of the token.

Consul itself tells which rights a token has, through the endpoint of its own web interface. The request changes
nothing. A new right that the sidecar needs belongs here, with the use that needs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied, ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.transport import TrioHTTPClient
from spegel_consul.consul.catalog.service_definitions import LEADER, METRICS, REGISTRY, ROUTER, ServiceMode
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.join.bootstrap_kind import BootstrapKind
from spegel_consul.lean.dataclass import dataclass

_CLOCK_TOLERANCE = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class ConsulUse:
    """What the sidecar does with Consul; all of it, unless its flags say otherwise."""

    leader_key: str | None = ElectionSettings().key
    """The key of the election; None: the sidecar takes no part in it."""
    registers: bool = True
    reads_catalog: bool = True

    @classmethod
    def of(cls, kinds: Container[BootstrapKind], mode: ServiceMode, leader_key: str) -> ConsulUse:
        """The use with these values of ``--bootstrap-kind``, ``--consul-service`` and ``--consul-leader-key``."""
        return cls(
            leader_key if BootstrapKind.CONSUL in kinds else None,
            mode in (ServiceMode.AUTO, ServiceMode.SELF),
            mode is not ServiceMode.OFF or BootstrapKind.CATALOG in kinds,
        )

    def rights(self, node: str = "") -> Iterator[Right]:
        """The rights that the token needs. ``node``: the name of the agent's node, empty if it is not known."""
        services = [REGISTRY, ROUTER, METRICS]
        if self.leader_key is not None:
            yield Right("key", self.leader_key, "write", f'key "{self.leader_key}"')
            yield Right("session", node, "write", 'session_prefix ""')
            services += [LEADER] if self.registers else []
        if self.registers or self.reads_catalog:
            access = "write" if self.registers else "read"
            yield from (Right("service", name, access, 'service_prefix "spegel"') for name in services)
        if self.reads_catalog:
            yield Right("node", "", "read", 'node_prefix ""')


class Right(NamedTuple):
    """A right, as Consul is asked for it; ``subject`` is the beginning of the rule that gives it."""

    resource: str
    segment: str
    access: str
    subject: str

    def __str__(self) -> str:
        return f"{self.resource}:{self.access}"

    @property
    def rule(self) -> str:
        return f'{self.subject} {{ policy = "{self.access}" }}'


async def checks_of(consul: ConsulSettings | None, use: ConsulUse) -> list[Check]:
    """Checks of the answer, leader, clock and token's rights; none without ``consul``. Takes 20 s at most."""
    if consul is None:
        return []
    try:
        http = TrioHTTPClient(consul)
    except ValueError as exc:
        return [fail("consul", str(exc))]
    try:
        began = time.time()
        date, text = await http.request(
            "GET", lambda answer: (answer.headers.get("Date"), answer.body), "/v1/status/leader", within=5
        )
        checks = [ok("consul", f"{consul.base_url} answers")]
        if text.strip() in ("", '""'):
            checks = [fail("consul", f"{consul.base_url} answers, but its servers have no leader")]
        checks.append(clock_check(date, began, time.time()))
        rights = tuple(use.rights(await _node_name(consul) if use.leader_key is not None else ""))
        question = json.dumps(
            [{"Resource": each.resource, "Segment": each.segment, "Access": each.access} for each in rights]
        )
        try:
            allowed = await http.request(
                "POST", lambda answer: json.loads(answer.body), "/v1/internal/acl/authorize", data=question, within=5
            )
        except ConsulError as exc:
            checks.append(_without_rights(exc))
        else:
            checks.append(rights_check([entry.get("Allow") is True for entry in allowed], rights))
    except ConsulError as exc:
        return [fail("consul", str(exc), "CONSUL_HTTP_ADDR=http://…:8500")]
    finally:
        await http.close()
    return checks


async def _node_name(consul: ConsulSettings) -> str:
    """The name of the agent's node, which a token's rule for sessions may name; empty if it does not tell."""
    try:
        async with ConsulClient(consul) as client:
            return (await client.agent_self()).name
    except ConsulError:
        return ""


def _without_rights(exc: ConsulError) -> Check:
    """The check if Consul did not tell the rights of the token."""
    if "ACL support disabled" in str(exc):
        return ok("acl", "ACLs are disabled")
    if isinstance(exc, AccessDenied):
        return fail("acl", f"Consul does not know the token: {exc}", "CONSUL_HTTP_TOKEN=…")
    return warn("acl", f"could not be checked: {exc}")


def rights_check(allowed: Iterable[bool], rights: Iterable[Right]) -> Check:
    """The check of the needed rights; ``allowed`` is Consul's answer, in their order."""
    missing = [right for right, has in zip(rights, allowed, strict=False) if not has]
    if not missing:
        return ok("acl", "the token has every right that is needed")
    if all(right.resource == "session" and not right.segment for right in missing):
        says = "the agent does not tell the name of its node, so the token's right to a session there is not known"
        return warn("acl", says, 'agent_prefix "" { policy = "read" }')
    lacks, rules = (dict.fromkeys(of_each) for of_each in (map(str, missing), (right.rule for right in missing)))
    return fail("acl", f"the token lacks {', '.join(lacks)}", "\n".join(rules))


def clock_check(date: str | None, before: float, after: float) -> Check:
    """The check of the clock, by the Date header of an answer.

    The answer came between ``before`` and ``after``, seconds of this machine's clock.
    """
    if not date:
        return warn("clock", "Consul's answer has no Date header")
    theirs = parsedate_to_datetime(date).timestamp()
    # the header has whole seconds, rounded down
    off = before - (theirs + 1) if before > theirs + 1 else min(0.0, after - theirs)
    if abs(off) > _CLOCK_TOLERANCE:
        return fail("clock", f"this machine is {off:+.0f} s off its Consul agent", "chronyc makestep")
    return ok("clock", "within 2 s of the Consul agent")
