"""Many nodes that pull one image at once, with bandwidths: ``python -m tests.sim.herd --nodes 200 --deaths 0.3``.

The keeper is the product's ``Claims``; runtimes, mirrors and links are modelled in steps of 50 ms, which is about what
a hop adds (a runtime writes by the MiB, a source looks every 10 ms).  A runtime downloads three layers at a time, in
order.  A follower keeps a layer of up to 32 MiB back until it has all of it (--verify-first).  Nodes that are complete
are found by lookup.  A dead node is cut off at once (a process that is killed) or stands still (a machine that is).
The patience of both sides is the product's: see registry/growing.py, send_growing.py and held_bodies.py.

With ``--zones 3 --trunk 2000`` the nodes stand in three zones by turns, and each zone has one line to the others.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterable

from spegel_consul.registry.growing import NO_PROGRESS
from spegel_consul.registry.mirror.followers import WAIT
from spegel_consul.registry.mirror.held_bodies import GROWING_STALL
from spegel_consul.registry.mirror.questions.source_search import FIRST_BYTE, SILENT
from spegel_consul.ring.dht.claim_reports import Report, What, Why
from spegel_consul.ring.dht.claims import Claims
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL
from tests.sim.herd_scene import LAG, LAG_FOR, MIB, SLOTS, STEP, VERIFY_FIRST, Node, Outcome, Scene, Transfer, mbit


class Herd:
    """One run of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self._places = [scene.place_of(number) for number in range(scene.nodes)] if scene.zones else []
        self.claims = self._keeper()
        self._following: dict[int, list[Node]] = {}
        rng = random.Random(scene.seed)
        once = scene.image / scene.line
        self._rng = rng
        dead = set(rng.sample(range(scene.nodes), round(scene.deaths * scene.nodes)))
        self.nodes = [
            Node(
                number,
                starts=number * scene.apart + (rng.uniform(0, 0.3) if number else 0.0),
                dies=rng.uniform(0.1, once) + number * scene.apart if number in dead else math.inf,
                hangs=rng.random() < 0.5,
                up=scene.link,
                down=scene.slow_middle if scene.slow_middle and number == scene.nodes // 2 else scene.link,
                upstream=scene.slow_claimer if scene.slow_claimer and number == 0 else math.inf,
                got=[0.0] * len(scene.layers),
                shown=[0.0] * len(scene.layers),
            )
            for number in range(scene.nodes)
        ]
        if scene.hung_claimer == "machine":
            self.nodes[0].dies, self.nodes[0].hangs = scene.hangs_at, True
        elif scene.hung_claimer:
            self.nodes[0].stalls = scene.hangs_at
        self.losses: list[tuple[int, int, Why]] = []
        self.claimed: set[int] = set()
        self.alone: set[int] = set()
        self._complete: list[Node] = []
        at = scene.hangs_at if scene.hung_claimer else once / 2
        self._hang_at = list(scene.claimers_hang_at)
        self._keeper_dies = at if scene.keeper_dies else math.inf

    def run(self, limit: float = 900.0) -> Outcome:
        """Run until each living node is complete, at most ``limit`` seconds."""
        while self.now < limit:
            self.now += STEP
            if self.now >= self._keeper_dies:
                self._keeper_dies, self.claims = math.inf, self._keeper()
            if self._hang_at and self.now >= self._hang_at[0]:
                self._hang_at.pop(0)
                claimer = next(each for each in self.nodes if each.what is What.CLAIM and each.lives(self.now))
                claimer.dies, claimer.hangs = self.now, True
            active = [each for each in self.nodes if each.lives(self.now) and each.finished == math.inf]
            for node in active:
                self._act(node)
            self._carry(active)
            for node in active:
                self._finish_layers(node)
            if all(node.finished < math.inf or self.now >= min(node.dies, node.stalls) for node in self.nodes):
                break
        done = [node for node in self.nodes if node.finished < math.inf]
        lasting = [node for node in self.nodes if node.dies == node.stalls == math.inf]
        slow = {0} if self.scene.slow_claimer else {self.scene.nodes // 2} if self.scene.slow_middle else set()
        return Outcome(
            factor=sum(node.from_upstream for node in self.nodes) / self.scene.image,
            last=max((node.finished - node.starts for node in done), default=math.inf),
            longest=max(node.longest for node in lasting),
            claims=len(self.claimed),
            alone=len(self.alone),
            unfinished=sum(node.finished == math.inf for node in lasting),
            last_fast=max((node.finished - node.starts for node in done if node.number not in slow), default=math.inf),
            losses=self.losses,
            crossed=sum(node.crossed for node in self.nodes) / self.scene.image,
            left_racks=sum(node.left_rack for node in self.nodes) / self.scene.image,
            hottest=max(node.gave for node in self.nodes) * len(self.nodes) / (sum(n.gave for n in self.nodes) or 1),
        )

    def _keeper(self) -> Claims:
        claims = Claims()
        if self.scene.zones:
            claims.place_of = lambda peer: self._places[int(peer)]
        return claims

    # -- a node

    def _act(self, node: Node) -> None:
        if node.moved == math.inf:
            node.moved = self.now
        if node.what is None or self.now >= node.due:
            self._report(node)
        for layer, size in enumerate(self.scene.layers):
            if len(node.transfers) >= SLOTS:
                break
            if node.got[layer] < size and layer not in node.transfers:
                self._begin(node, layer)
        if node.what is What.FOLLOW:
            self._watch(node)

    def _begin(self, node: Node, layer: int) -> None:
        source = node.source if node.what is What.FOLLOW else None
        if node.what is not What.CLAIM and node.got[layer] == 0 and (self.scene.providers_first or source is None):
            providers = [each for each in self._complete if each.lives(self.now)]
            if self.scene.zones:
                near = [each for each in providers if not self._crosses(each, node)]
                # another zone is asked after the source of the verdict
                providers = near if near or source is not None or self.scene.near_only else providers
                here = self._places[node.number]
                distances = [here.distance(self._places[each.number]) for each in providers]
                providers = [each for each, far in zip(providers, distances, strict=True) if far == min(distances)]
            if providers:
                source = self._rng.choice(providers)
        kept = source is not None and self.scene.layers[layer] <= VERIFY_FIRST
        node.transfers[layer] = Transfer(layer, source, self.now, self.now, kept)

    def _watch(self, node: Node) -> None:
        """Notice a source that is gone, refuses or stands still."""
        for transfer in list(node.transfers.values()):
            source = transfer.source
            if source is None or (why := self._failure(transfer, source)) is None:
                continue
            if source is node.source:
                self._report(node, source, why)
            else:
                self._follow(node, transfer, node.source)
            return

    def _failure(self, transfer: Transfer, source: Node) -> Why | None:
        still = self.now - max(transfer.moved, transfer.began)
        if not source.lives(self.now) and not source.hangs:
            return Why.CUT
        if not source.lives(self.now) and not transfer.streams and still > SILENT:
            return Why.CUT  # not even interim answers come
        if still > (GROWING_STALL if transfer.streams else FIRST_BYTE):
            return Why.CUT if transfer.streams else Why.REFUSED
        if not source.lives(self.now) or source.finished < math.inf:
            return None
        own = source.transfers.get(transfer.layer)
        in_chain = self.scene.patient and own is not None and own.source is not None
        if transfer.streams:
            grew = own.grew if own is not None else transfer.moved
            stall = CHAIN_STALL if in_chain else STALL
            return Why.CUT if self.now - max(grew, transfer.moved) > stall else None
        waits = WAIT if in_chain else NO_PROGRESS
        return Why.REFUSED if self.now - max(source.moved, source.turned, transfer.began) > waits else None

    def _follow(self, node: Node, transfer: Transfer, source: Node | None) -> None:
        """Take a layer from another source, or from upstream."""
        transfer.source, transfer.began, transfer.grew = source, self.now, self.now
        transfer.streams, transfer.lagging_since = False, math.inf
        if source is None:  # the runtime resumes upstream
            transfer.kept = False
            node.shown[transfer.layer] = node.got[transfer.layer]

    def _report(self, node: Node, lost: Node | None = None, why: Why = Why.NONE) -> None:
        if lost is not None:
            self.losses.append((node.number, lost.number, why))
        report = Report(
            lost.id if lost is not None else b"",
            why,
            serves=True,
            have=node.has(),
            working=True,
            behind=tuple(self._behind(node))[:16],
            held=b"" if node.what is None or node.what is What.ALONE else (node.source or node).id,
            near_only=self.scene.near_only,
            left=int(self.scene.image - sum(node.shown)),
        )
        decision = self.claims.report(b"group", node.id, report, self.now)
        node.due = self.now + decision.again
        source = self.nodes[int(decision.sources[0])] if decision.sources else None
        for transfer in node.transfers.values():
            if decision.what is not What.FOLLOW and transfer.source is not None:
                if transfer.source.finished == math.inf or not transfer.source.lives(self.now):
                    self._follow(node, transfer, None)
            elif transfer.source is not None and transfer.source is node.source and source is not node.source:
                self._follow(node, transfer, source)
        if (node.what, node.source) != (decision.what, source):
            node.turned = self.now
        node.what, node.source = decision.what, source
        if node.what is What.CLAIM:
            self.claimed.add(node.number)
        elif node.what is What.ALONE:
            self.alone.add(node.number)

    def _behind(self, node: Node) -> Iterable[bytes]:
        for other in self._following.get(node.number, ()):
            for transfer in other.transfers.values():
                if transfer.source is node and self.now - transfer.lagging_since > LAG_FOR:
                    yield other.id
                    break

    def _finish_layers(self, node: Node) -> None:
        node.longest = max(node.longest, self.now - node.moved)
        for layer in [layer for layer in node.transfers if node.got[layer] >= self.scene.layers[layer] - 1]:
            node.got[layer] = node.shown[layer] = self.scene.layers[layer]
            del node.transfers[layer]
        if all(got == size for got, size in zip(node.got, self.scene.layers, strict=True)):
            node.finished = self.now
            self._complete.append(node)
            report = Report(serves=True, have=node.has(), working=False, behind=tuple(self._behind(node))[:16])
            self.claims.report(b"group", node.id, report, self.now)

    # -- links

    def _carry(self, active: list[Node]) -> None:
        """Move what the links allow in one step."""
        wanted: list[tuple[Node, Transfer, float]] = []
        self._following = {}
        for node in active:
            for transfer in node.transfers.values():
                missing = self.scene.layers[transfer.layer] - node.got[transfer.layer]
                source = transfer.source
                if source is None:
                    if self.now < node.stalls:
                        wanted.append((node, transfer, missing))
                    continue
                self._following.setdefault(source.number, []).append(node)
                if not source.lives(self.now):
                    continue
                ready = source.shown[transfer.layer] - node.got[transfer.layer]
                if ready <= LAG:
                    transfer.lagging_since = math.inf
                elif transfer.lagging_since == math.inf:
                    transfer.lagging_since = self.now
                if ready > 0:
                    wanted.append((node, transfer, ready))
        amounts = [amount for _, _, amount in wanted]
        _share(amounts, [node.number if not transfer.source else -1 for node, transfer, _ in wanted], self._own_line)
        _share(amounts, [transfer.source.number if transfer.source else -1 for _, transfer, _ in wanted], self._out)
        _share(amounts, [node.number for node, _, _ in wanted], lambda number: self.nodes[number].down)
        if self.scene.trunk < math.inf:
            crossing = [self._crosses(transfer.source, node) for node, transfer, _ in wanted]
            ends = [(transfer.source or node, node) for node, transfer, _ in wanted]
            for end in (0, 1):
                lines = [self.scene.line_of(pair[end].number) for pair in ends]
                _share(amounts, [line if far else -1 for line, far in zip(lines, crossing, strict=True)], self._trunk)
        for (node, transfer, _), amount in zip(wanted, amounts, strict=True):
            if amount <= 0:
                continue
            node.got[transfer.layer] += amount
            node.moved = transfer.moved = self.now
            transfer.streams = True
            if transfer.source is None:
                node.from_upstream += amount
            else:
                transfer.source.gave += amount
                node.crossed += amount if self._crosses(transfer.source, node) else 0.0
                node.left_rack += amount if self._leaves_rack(transfer.source, node) else 0.0
        for node, transfer, _ in wanted:
            if not transfer.kept:
                node.shown[transfer.layer] = max(node.shown[transfer.layer], node.got[transfer.layer])
            transfer.grew = transfer.moved

    def _crosses(self, source: Node | None, node: Node) -> bool:
        return source is not None and self.scene.line_of(source.number) != self.scene.line_of(node.number)

    def _leaves_rack(self, source: Node, node: Node) -> bool:
        return bool(self.scene.racks) and self.scene.rack_of(source.number) != self.scene.rack_of(node.number)

    def _trunk(self, line: int) -> float:
        return self.scene.trunk if line >= 0 else math.inf

    def _out(self, number: int) -> float:
        return self.scene.line if number < 0 else self.nodes[number].up

    def _own_line(self, number: int) -> float:
        return math.inf if number < 0 else self.nodes[number].upstream


def _share(amounts: list[float], keys: list[int], rate: Callable[[int], float]) -> None:
    """Cut ``amounts`` to the links' rates, max-min fair among those with the same key."""
    groups: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for key, members in groups.items():
        room = rate(key) * STEP
        if sum(amounts[index] for index in members) <= room:
            continue
        members.sort(key=amounts.__getitem__)
        for place, index in enumerate(members):
            amounts[index] = min(amounts[index], room / (len(members) - place))
            room -= amounts[index]


def main() -> int:
    """The exit status: 1 if a living node has no image, or if more than a copy for each zone has crossed."""
    asked = argparse.ArgumentParser(prog="python -m tests.sim.herd", description="Nodes that pull one image at once.")
    asked.add_argument("--nodes", type=int, default=200)
    asked.add_argument("--deaths", type=float, default=0.0, help="share of the nodes that die")
    asked.add_argument("--link", type=float, default=1000, help="Mbit/s of each node, each way")
    asked.add_argument("--line", type=float, default=200, help="Mbit/s of the upstream")
    asked.add_argument("--apart", type=float, default=0.0, help="seconds between two starts")
    asked.add_argument("--slow-claimer", type=float, default=0.0, help="Mbit/s of the first node's upstream")
    asked.add_argument("--slow-middle", type=float, default=0.0, help="Mbit/s of a node's downlink")
    asked.add_argument("--hung-claimer", choices=("runtime", "machine"), default="")
    asked.add_argument("--hangs-at", type=float, default=Scene.hangs_at, help="seconds")
    asked.add_argument("--keeper-dies", action="store_true")
    asked.add_argument("--providers-first", action="store_true", help="ask complete nodes before the source")
    asked.add_argument("--impatient", action="store_true", help="a source without bytes refuses after 6 s")
    asked.add_argument("--small-layers", action="store_true", help="9 layers of 30 MiB, which are kept back")
    asked.add_argument("--zones", type=int, default=0, help="zones that the nodes say they are in")
    asked.add_argument("--racks", type=int, default=0, help="racks of each zone that the nodes say they are in")
    asked.add_argument("--silent-racks", action="store_true", help="the nodes don't say in which rack they are")
    asked.add_argument("--lines", type=int, default=0, help="zones that they are in, if they say something else")
    asked.add_argument("--trunk", type=float, default=math.inf, help="Mbit/s of each zone to and from the others")
    asked.add_argument("--near-only", action="store_true", help="no node follows across zones")
    asked.add_argument("--seeds", type=int, default=3)
    options = asked.parse_args()
    failed = False
    for seed in range(options.seeds):
        scene = Scene(
            nodes=options.nodes,
            layers=(30 * MIB,) * 9 if options.small_layers else Scene.layers,
            line=mbit(options.line),
            link=mbit(options.link),
            deaths=options.deaths,
            apart=options.apart,
            slow_claimer=mbit(options.slow_claimer),
            slow_middle=mbit(options.slow_middle),
            keeper_dies=options.keeper_dies,
            hung_claimer=options.hung_claimer,
            hangs_at=options.hangs_at,
            patient=not options.impatient,
            providers_first=options.providers_first,
            zones=options.zones,
            racks=options.racks,
            silent_racks=options.silent_racks,
            lines=options.lines,
            trunk=mbit(options.trunk),
            near_only=options.near_only,
            seed=seed,
        )
        found = Herd(scene).run()
        failed |= bool(found.unfinished) or bool(options.zones and found.crossed > options.zones)
        print(f"seed {seed}: {found}; one copy through the line {scene.image / scene.line:.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
