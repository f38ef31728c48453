"""The claimer, a follower, the keeper or the upstream fails while all nodes pull one new image.

The claimer is the node that downloads from the upstream for all, followers read its download, and the keeper is the
node of the ring that assigned them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from lab.cluster import Node
from lab.cold_start import runtime
from lab.image import MIB, Image

from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.claiming import group_key
from spegel_consul.ring.dht.keys import position
from spegel_consul.ring.net.node_key import load_or_create, peer_id
from tests.faults.catalog import cold_start
from tests.faults.cold_scene import HEAD_START, ColdScene, Run
from tests.faults.scene import HANG_TIMEOUT

SLOW = 10  # Mbit/s
MARGIN = 1.1
"""How much longer nodes may take than without the product, on account of a neighbour that is slow."""

RESTART_AFTER = 5.0
SMALL = [MIB]


@cold_start("claimer's sidecar killed")
def the_claimers_sidecar_is_killed(scene: ColdScene) -> None:
    with scene.fault("kill -9: the claimer's sidecar") as run:
        run.pulls.claimer().sidecar.kill9()


@cold_start("claimer's containerd killed")
def the_claimers_containerd_is_killed(scene: ColdScene) -> None:
    with scene.fault("kill -9: the claimer's containerd") as run:
        kill_runtime(run, run.pulls.claimer())


@cold_start("claimer's sidecar hangs", takes_minutes=True)
def the_claimers_sidecar_hangs(scene: ColdScene) -> None:
    with scene.fault("SIGSTOP for good: the claimer's sidecar") as run:
        hang(run.pulls.claimer())


@cold_start("claimer's containerd hangs", takes_minutes=True)
def the_claimers_containerd_hangs(scene: ColdScene) -> None:
    """Its download stands, and its sidecar goes on to serve what there is."""
    with scene.fault("SIGSTOP for good: the claimer's containerd") as run:
        claimer = run.pulls.claimer()
        run.spared.append(claimer)
        runtime(claimer).running().pause()
        run.pulls.await_others(claimer)
        runtime(claimer).running().resume()


@cold_start("follower's sidecar killed", takes_minutes=True)
def a_followers_sidecar_is_killed(scene: ColdScene) -> None:
    with scene.fault("kill -9: a follower's sidecar") as run:
        run.pulls.follower(run.pulls.claimer()).sidecar.kill9()


@cold_start("follower's containerd killed", takes_minutes=True)
def a_followers_containerd_is_killed(scene: ColdScene) -> None:
    with scene.fault("kill -9: a follower's containerd") as run:
        kill_runtime(run, run.pulls.follower(run.pulls.claimer()))


def the_keeper_fails(scene: ColdScene, what: str) -> None:
    """It pulls nothing itself, so that it is missed as the keeper and not as a source."""
    image = scene.cold.image(scene.layers)
    keeper = keeper_of(scene.nodes, image)
    others = [node for node in scene.nodes if node is not keeper]
    with scene.fault(f"{what}: the keeper", image=image, nodes=others) as run:
        run.pulls.claimer()
        if what == "kill -9":
            keeper.sidecar.kill9()
        else:
            hang(keeper)
    if what != "kill -9":  # of one that is killed the ring may know before it is asked
        name = peer_id_to_text(peer_id_of(keeper))
        lines = [line for node in others for line in node.sidecar.log().splitlines() if "ring_claim_failed" in line]
        assert any(name in line for line in lines), f"{keeper} was not the keeper"


for what in ("kill -9", "SIGSTOP for good"):
    cold_start(f"keeper: {what}", takes_minutes=True)(partial(the_keeper_fails, what=what))


def the_claimers_upstream_refuses(scene: ColdScene, way: str, what: str) -> None:
    """The first node is refused; the others may have what it is refused."""
    first = scene.nodes[0]
    with scene.bad_upstream(way) as url:
        scene.cold.ask_mirror(first, url)
        with scene.fault(what) as run:
            run.spared.append(first)


for way, what, minutes in (
    ("refuse-blobs", "the first node's upstream refuses blobs (403)", False),
    ("refuse-all", "the first node has no credentials (401)", True),
):
    cold_start(way, takes_minutes=minutes)(partial(the_claimers_upstream_refuses, way=way, what=what))


@cold_start("upstream cuts", takes_minutes=True)
def the_upstream_cuts_each_layer_once(scene: ColdScene) -> None:
    """Runtimes have the rest by Range."""
    with scene.bad_upstream("cut") as url:
        for node in scene.nodes:
            scene.cold.ask_mirror(node, url)
        with scene.fault("upstream cuts the first answer with each layer in its middle"):
            pass


@cold_start("upstream dies", takes_minutes=True)
def the_upstream_dies_and_comes_back(scene: ColdScene) -> None:
    """Each pull is tried again, as kubelet does, until the upstream is back."""
    registry = scene.cold.upstream
    with scene.fault(f"upstream killed half-way, started again after {RESTART_AFTER:g} s", attempts=40) as run:
        run.pulls.claimer()
        registry.running().kill9()
        time.sleep(RESTART_AFTER)
        registry.start()
        registry.running().until(registry.answers_requests, timeout=20, what="the upstream answers")


@cold_start("claimer gets wrong bytes", takes_minutes=True)
def the_claimer_gets_wrong_bytes(scene: ColdScene) -> None:
    """Layers that are too large to be verified first spoil one pull of each node, and not the next one.

    Followers pass on what they can't have verified yet, so none of them may be barred as a liar.
    """
    first, others = scene.nodes[0], scene.nodes[1:]
    image = scene.cold.image(scene.layers)
    with scene.bad_upstream("flip") as url:
        scene.cold.ask_mirror(first, url)
        spoilt = scene.cold.begin(image, apart=HEAD_START, timeout=120).outcome()
    assert any(pull.node == first.name for pull in spoilt.failures), "the first node had right bytes"
    scene.cold.ask_mirror(first)
    # until the runtime's garbage collection has taken the wrong bytes
    with scene.fault("the claimer had wrong bytes: the next pulls", image=image, attempts=10):
        pass
    for giver in others:
        assert_is_asked(scene, giver)


def a_node_is_slow(scene: ColdScene, place: int, what: str) -> None:
    """Others take no longer than if each of them had asked the upstream."""
    slow = scene.nodes[place]
    slow.port.limit_incoming_rate(SLOW)
    try:
        with scene.fault(what, timeout=300) as run:
            run.spared.append(slow)
    finally:
        slow.port.limit_incoming_rate(0)
    assert run.outcome is not None
    assert not run.outcome.failures, "the slow node has the image too, though late"
    share = scene.cold.upstream_mbit / (scene.cold.upstream_mbit - SLOW)  # the slow node has the rest of the line
    without = (len(scene.nodes) - 1) * share * scene.rows[-1].line
    took = run.last_ready()
    assert took <= MARGIN * without, f"{took:.1f} s, and {without:.1f} s for copies of their own"


for place, what in ((0, "the claimer"), (1, "a follower, the first of the chain,")):
    cold_start(f"{what} has {SLOW} Mbit/s", takes_minutes=True)(
        partial(a_node_is_slow, place=place, what=f"{what} receives {SLOW} Mbit/s")
    )


def kill_runtime(run: Run, node: Node) -> None:
    run.spared.append(node)
    runtime(node).running().kill9()


def hang(node: Node) -> None:
    """SIGSTOP for the node's sidecar; its guard ends it."""
    node.sidecar.pause()
    node.sidecar.stopped = True
    assert node.sidecar.process.wait(HANG_TIMEOUT * 3) == 1


def keeper_of(nodes: Sequence[Node], image: Image) -> Node:
    """The node whose place in the ring is nearest to the key of the image's group."""
    key = int.from_bytes(group_key(image.amd64.manifest), "big")
    return min(nodes, key=lambda node: key ^ position(peer_id_of(node)))


def peer_id_of(node: Node) -> bytes:
    return peer_id(load_or_create(node.dir / "spegel"))


def assert_is_asked(scene: ColdScene, giver: Node) -> None:
    """All others have an image from ``giver`` that nobody else has, so nobody has barred it."""
    image = scene.cold.image(SMALL)
    others = [node for node in scene.nodes if node is not giver]
    scene.cold.pull(image, nodes=[giver])
    scene.await_found(image, others)
    outcome = scene.cold.pull(image, nodes=others)
    assert not outcome.failures
    assert outcome.blobs == (), f"{giver} is not asked by all"
    scene.cold.remove(image)
