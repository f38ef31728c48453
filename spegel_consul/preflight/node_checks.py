"""The checks of preflight: whether this node is set up for a mirror.

Each group of checks asks one part of the machine, in a thread if the call may block. Groups run at the same time, and
an unexpected failure of a group becomes a warning of that group alone. A new check belongs here, in the group of its
part, or as a new group in ``run``.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.service_definitions import of_cluster
from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints import dial_back
from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.preflight import consul_checks
from spegel_consul.preflight.interfaces import in_container, interface_of
from spegel_consul.preflight.runtime_checks import containerd_checks, docker_checks
from spegel_consul.preflight.subject import Subject

# only the names that Docker generates, because administrators name bridges of real networks br-lan and the like
_DOCKER_BRIDGE = re.compile(r"docker0|br-[0-9a-f]{12}")
_OTHER_BRIDGES = ("docker", "virbr", "cni", "nomad", "podman")


async def run(subject: Subject) -> list[Check]:
    """Run all checks. Returns them in a fixed order, the address first. Takes some seconds at most."""
    groups: list[tuple[str, Callable[[Subject], Awaitable[list[Check]]]]] = [
        ("address", _address),
        ("containerd", containerd_checks),
        ("docker", docker_checks),
        ("clients", _clients),
        ("consul", lambda subject: consul_checks.checks_of(subject.consul, subject.consul_use)),
        ("dial-back", _certificate_and_dial_back),
    ]
    found: list[list[Check]] = [[] for _ in groups]

    async def check(number: int) -> None:
        name, group = groups[number]
        try:
            found[number] = await group(subject)
        except Exception as exc:
            found[number] = [warn(name, f"could not be checked: {exc!r}")]

    async with trio.open_nursery() as nursery:
        for number in range(len(groups)):
            nursery.start_soon(check, number)
    return [check for checks in found for check in checks]


def address_check(address: str, bound: str) -> Check:
    """Whether peers can reach ``address``. ``bound``: the host that the registry listens on."""
    name = "address"
    parsed = ipaddress.ip_address(address)
    fix = "--advertise-addr <this machine's address in the cluster>"
    if parsed.is_loopback:
        if bound:
            return warn(name, f"{address} is loopback: only nodes on this very machine can use it", fix)
        return fail(name, f"{address} is loopback: to another node it means itself", fix, fatal=True)
    interface = interface_of(address)
    if interface is not None and _DOCKER_BRIDGE.fullmatch(interface):
        says = f"{address} belongs to {interface}, a bridge of this machine's containers: no other machine reaches it"
        return fail(name, says, fix, fatal=True)
    if interface is not None and interface.startswith(_OTHER_BRIDGES):
        says = f"{address} belongs to {interface}: no other machine reaches it if that is a bridge of this machine"
        return warn(name, says, fix)
    if in_container() and parsed in ipaddress.ip_network("172.17.0.0/16"):
        says = f"{address} is an address of Docker's bridge network: nodes on other machines can't reach it"
        return fail(name, says, f'network_mode = "host"\n# or\n{fix}')
    return ok(name, f"peers are told {address}" + (f", of {interface}" if interface else ""))


async def _address(subject: Subject) -> list[Check]:
    await trio.lowlevel.checkpoint()
    checks = [address_check(subject.address, subject.bound)]
    if subject.peer_tls is not None:
        from spegel_consul.preflight.certificate_checks import runtime_check  # here, because most nodes need none

        own = runtime_check(subject.address, subject.peer_tls, has_own_address=subject.runtime_port is not None)
        checks += [own] if own is not None else []
    return checks


async def _clients(subject: Subject) -> list[Check]:
    if subject.containers_config is None and subject.buildkitd_config is None:
        await trio.lowlevel.checkpoint()
        return []
    # here, because a sidecar's start does not check them and needs no parser of their files
    from spegel_consul.preflight.clients.client_checks import client_checks

    return await client_checks(subject)


async def _certificate_and_dial_back(subject: Subject) -> list[Check]:
    """The certificate comes first, because nodes that require TLS are asked with it."""
    checks: list[Check] = []
    contexts: tuple[ssl.SSLContext | None, ...] = (None,)
    if subject.tls:
        # peers that verify clients refuse those without a certificate
        shown = subject.certificates if subject.certificates and subject.certificates.verifies_clients else None
        contexts = (shown.client() if shown is not None else dial_back.unverified(),)
    if subject.peer_tls is not None:
        if subject.certificates is not None:
            context = subject.certificates.client()
        elif subject.consul is not None:
            from spegel_consul.preflight.certificate_checks import certificate_of_consul

            check, context = await certificate_of_consul(subject.consul)
            checks += [check] if check is not None else []
        else:
            context = dial_back.unverified()
        if context is not None:
            contexts = (context,) if subject.peer_tls is Encryption.REQUIRE else (context, None)
        elif subject.peer_tls is Encryption.REQUIRE:
            return [*checks, warn("dial-back", "not checked: this node has no certificate for its peers")]
    return checks + await _dial_back(subject, contexts)


async def _dial_back(subject: Subject, contexts: tuple[ssl.SSLContext | None, ...]) -> list[Check]:
    peer = subject.peer
    if peer is None and subject.consul is not None:
        try:
            async with ConsulClient(subject.consul) as client:
                _, instances = await client.health_service("spegel", near="_agent")
        except (ConsulError, ValueError):
            return []  # the check of Consul reports it
        instances = of_cluster(instances, subject.leader_key)
        others = [one for one in instances if (one.address, one.port) != (subject.address, subject.registry_port)]
        if others:
            peer = dial_back.Peer(others[0].address, others[0].port)
    if peer is None:
        return [ok("dial-back", "not checked: no other node is known yet")]
    return [
        await in_thread(
            partial(dial_back.ask, replace(peer, contexts=contexts), subject.address, subject.registry_port)
        )
    ]
