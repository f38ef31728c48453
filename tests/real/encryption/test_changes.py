"""TLS between nodes with Consul's certificates, while modes, authorities, agents and clocks change under pulls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab import thorough
from lab.cluster import Node
from lab.process import until
from lab.wall_clock import WallClock

from tests.real.encryption.mirrors import (
    RUNTIMES,
    Mirrors,
    Scene,
    await_warning,
    certificates,
    encrypted,
    expires_in,
    play,
    warnings,
)

pytestmark = pytest.mark.real


def _moves_from_off_to_prefer(mirrors: Mirrors) -> None:
    move(mirrors, "off", "prefer")


def _moves_from_prefer_to_require(mirrors: Mirrors) -> None:
    move(mirrors, "prefer", "require")


def move(mirrors: Mirrors, before: str, after: str) -> None:
    """Node by node, as a rolling update of the job does."""
    mirrors.start_all(before)
    with mirrors.pulls() as pulls:
        pulls.from_peers(f"all have {before}", 1)
        for node in (*mirrors.holders, mirrors.puller):
            mirrors.restart(node, after)
            pulls.some(f"{node} has {after}", 1)
        pulls.from_peers(f"all have {after}", 1)
    # one of them may not have been asked yet
    assert set(encrypted(mirrors.puller).values()) in ({True}, {True, None})


def _authority_rotates(mirrors: Mirrors) -> None:
    """The new root is signed by the old one, so nodes with certificates of both believe each other."""
    mirrors.start_all("require")
    with mirrors.pulls() as pulls:
        pulls.some("before the rotation", 1)
        # new certificates come up to 30 s after a new root, and the second rotation does not wait for them
        with mirrors.renewed(*(mirrors.lab if thorough.ALL else ())):
            mirrors.rotate()
            mirrors.await_authorities(2)
        pulls.from_peers("with two authorities", 1)
        if thorough.ALL:
            mirrors.rotate()
            mirrors.await_authorities(3)
            pulls.from_peers("with three authorities", 1)
    assert set(encrypted(mirrors.puller).values()) in ({True}, {True, None})
    for node in mirrors.lab:
        # Consul's own check, in plain text from its machine, goes on
        until(lambda node=node: len(node.consul.instances("spegel")) == 3, timeout=20, what="all pass Consul's checks")
        assert ((node.dir / "spegel/consul-leaf.json").stat().st_mode & 0o777) == 0o600
        assert warnings(node) == []


def _root_is_not_cross_signed(mirrors: Mirrors) -> None:
    """Nodes that have not heard of the new root refuse certificates of it, until they have."""
    one, two = mirrors.holders
    mirrors.start_all("require")
    # a key of Consul's for its own tests: its authority then behaves as one that can't sign another root
    mirrors.rotate(DisableCrossSigning=True)
    mirrors.await_authorities(2)
    with mirrors.pulls() as pulls:
        pulls.from_peers("before the rotation", 1)
        one.consul.running().kill9()
        mirrors.leave(two)
        with mirrors.renewed(mirrors.puller):
            mirrors.rotate(DisableCrossSigning=True)
            mirrors.await_authorities(3, mirrors.puller)
        mirrors.restart(mirrors.puller, "require", others=1)  # connections that stand would go on
        pulls.from_upstream("the only holder has not heard of the new root")
        one.consul.start()
        mirrors.await_authorities(3, one)
        pulls.from_peers("it has", 1)


def _agents_die(mirrors: Mirrors) -> None:
    one, two = mirrors.holders
    mirrors.start_all("require")
    with mirrors.pulls() as pulls:
        # its key was in its memory
        with mirrors.renewed(one):
            one.consul.running().kill9()
            pulls.from_peers("an agent is dead", 1)
            one.consul.start()
        pulls.from_peers("the agent is back", 1)
        # the servers are gone, an agent restarts, and so does its sidecar: the kept certificate is all there is
        mirrors.puller.consul.running().kill9()
        two.consul.running().kill9()
        two.consul.start()
        mirrors.restart(two, "require")
        mirrors.leave(one)
        pulls.from_peers("from the restarted node alone", 2)


def _clock_passes_the_end_of_certificates(mirrors: Mirrors) -> None:
    """Consul's clock is right, so its agents have no reason to renew what the nodes take for old."""
    clock = WallClock(mirrors.lab.dir / "clock")
    for node in mirrors.lab:
        mirrors.start(node, "require", env=clock.env)
    mirrors.await_all()
    with mirrors.pulls() as pulls:
        pulls.from_peers("the certificates are new", 1)
        assert [each for node in mirrors.lab for each in warnings(node)] == []
        assert 71 < expires_in(mirrors.puller) <= 72
        clock.set("+67h")
        for node in mirrors.lab:
            await_warning(node, "expires within 5 h and is not renewed: Consul sent no other")
        assert 4 < expires_in(mirrors.puller) < 5
        pulls.from_peers("the certificates are near their end", 1)
        clock.set("+73h")
        await_warning(mirrors.puller, "the certificate for peers has expired")
        assert expires_in(mirrors.puller) < 0
        mirrors.restart(mirrors.puller, "require")  # connections that stand go on
        pulls.from_upstream("the certificates have expired")
        clock.set("+0")
        pulls.from_peers("the clock is right", 1)
    assert warnings(mirrors.puller) == []


def _connect_is_switched_off(mirrors: Mirrors) -> None:
    mirrors.start_all("require")
    server = mirrors.puller.consul
    with mirrors.pulls() as pulls:
        pulls.some("before", 1)
        serials = [certificates(node)[-1][0] for node in mirrors.lab]
        configure(mirrors.puller, "connect { enabled = false }\n")
        await_warning(mirrors.puller, "is not renewed: Consul has no authority, add connect { enabled = true }", 60)
        pulls.from_peers("Consul has no authority", 2)
        assert [certificates(node)[-1][0] for node in mirrors.lab] == serials
        configure(mirrors.puller, "connect { enabled = true }\n")
        until(lambda: bool(server.get("/v1/agent/connect/ca/roots")["Roots"]), timeout=60, what="there is an authority")
        until(lambda: not warnings(mirrors.puller), timeout=60, what="nothing is wrong any more")
        pulls.from_peers("it has one again", 1)


def configure(node: Node, hcl: str) -> None:
    """Restart the node's agent with another configuration."""
    node.consul.options = replace(node.consul.options, hcl=hcl)
    node.consul.running().kill9()
    node.consul.start()
    until(lambda: node.consul.sees(3), timeout=60, what="it sees all agents and a leader")


LONG = [
    _moves_from_off_to_prefer,
    _moves_from_prefer_to_require,
    _root_is_not_cross_signed,
    _agents_die,
    _clock_passes_the_end_of_certificates,
    _connect_is_switched_off,
]
SCENES = [_authority_rotates, *(LONG if thorough.ALL else [])]


@pytest.mark.parametrize("version", RUNTIMES)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_no_pull_fails(scene: Scene, version: str, cluster, image, record_property) -> None:
    play(scene, version, cluster, image, record_property)
