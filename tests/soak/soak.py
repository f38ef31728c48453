# The cluster and the load are those of the faults.  On top of that images come and go that nobody had before, so that
# what is kept for each of them shows; two nodes are restarted by turns, so that what is kept for each peer shows; and
# the lead changes.  The other sidecars live through all of it and are looked at from outside.

"""Churn of images, nodes and leaders, and what it makes of the sidecars that live through it."""

from __future__ import annotations

import http.client
import random
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lab.cluster import Node
from lab.image import MIB, Image, build
from lab.process import Failed
from lab.sidecar import METRICS_PORT

from tests.faults.load import discard, pull
from tests.faults.scene import Scene
from tests.soak.growth import Bound, Growth, growth, judged_upstream, rises_at_last

BOUNDS = (
    Bound("MiB resident", per_hour=6, noise=10),
    Bound("MiB of it not of files", per_hour=6, noise=10),
    Bound("descriptors", per_hour=12, noise=50),
    Bound("tasks", per_hour=12, noise=80),
    Bound("threads", per_hour=2, noise=6),
)
_SAMPLE_EVERY = 3.0
_IMAGE_EVERY, _IMAGES = 4.0, 8
_LEADER_EVERY = 23.0
_RESTART_EVERY = 37.0
_RESTARTED = 2  # of the nodes, the last ones
_HITS = re.compile(r'^spegel_mirror_requests_total\{[^}]*cache="hit"[^}]*\} (\S+)', re.M)


class Soak:
    """One run on a cluster that is up."""

    def __init__(self, scene: Scene, seed: int = 0, kept: Path | None = None) -> None:
        self._scene = scene
        self._kept = kept  # a file to which samples are added: seconds, node, and the values in the order of BOUNDS
        self._random = random.Random(seed)
        self._fleeting: list[Image] = []
        self._made = 0
        self._samples: dict[tuple[str, Bound], list[tuple[float, float]]] = defaultdict(list)
        self._hits: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.restarts = self.leaders = 0

    @property
    def images(self) -> int:
        """How many came and went."""
        return self._made

    @property
    def lasting(self) -> list[Node]:
        """Those whose sidecars are never restarted."""
        return list(self._scene.nodes[:-_RESTARTED])

    def run(self, seconds: float) -> None:
        """Churn for so long. Raises Failed if a pull failed."""
        began = time.monotonic()
        self._scene.upstream.forget()
        load, pids = self._scene.load, {node.name: node.sidecar.pid for node in self.lasting}
        due = {
            self._sample: 0.0,
            self._another_image: 1.0,
            self._another_leader: _LEADER_EVERY / 2,
            self._restart_one: _RESTART_EVERY / 3,
        }
        every = {
            self._sample: _SAMPLE_EVERY,
            self._another_image: _IMAGE_EVERY,
            self._another_leader: _LEADER_EVERY,
            self._restart_one: _RESTART_EVERY,
        }
        while (now := time.monotonic() - began) < seconds:
            for do in [do for do, at in due.items() if at <= now]:
                due[do] = now + every[do]
                do()
            load.check()
            time.sleep(0.1)
        while self._fleeting:
            self._let_go(self._fleeting[0])
        self._scene.await_one_ring()
        for node in self.lasting:
            assert node.sidecar.pid == pids[node.name], f"the sidecar of {node} was ended by its guard"
        failures = [each for each in load.pulls if each.began >= began and each.problem]
        if failures:
            raise Failed(f"{len(failures)} pulls failed, such as {failures[0]}")

    def growths(self, warm_up: float) -> Iterator[Growth]:
        """Of each lasting sidecar, without the first ``warm_up`` seconds."""
        for (name, bound), samples in sorted(self._samples.items(), key=lambda item: (item[0][1].what, item[0][0])):
            start = samples[0][0] + warm_up
            yield growth(name, bound, [sample for sample in samples if sample[0] >= start])

    def unserved(self) -> Iterator[str]:
        """What shows that the mirrors did not serve. No pull fails of that, because runtimes ask the upstream then."""
        blobs = {image.name: image.amd64.digests - {image.amd64.manifest} for image in self._scene.images}
        pulled = sum(len(blobs.get(each.image, ())) for each in self._scene.load.pulls)
        wanted = set().union(*blobs.values())
        asked = sum(digest in wanted for _, digest in self._scene.upstream.blob_requests())
        yield from judged_upstream(asked, pulled)
        for node in self.lasting:
            if not rises_at_last(self._hits[node.name]):
                yield f"{node.name}: no peer served its runtime in the last quarter"

    def _sample(self) -> None:
        for node in self.lasting:
            process = Path(f"/proc/{node.sidecar.pid}")
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
            values = (
                *(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")),
                len(list((process / "fd").iterdir())),
                _tasks(node),
                int(status["Threads"]),
            )
            now = time.monotonic()
            hits = _metrics(node, "/metrics")
            if hits is not None:
                self._hits[node.name].append((now, sum(map(float, _HITS.findall(hits)))))
            if self._kept is not None:
                with self._kept.open("a") as file:
                    print(f"{now:.0f}", node.name, *values, file=file)
            for bound, value in zip(BOUNDS, values, strict=True):
                if value is not None:
                    self._samples[node.name, bound].append((now, value))

    def _another_image(self) -> None:
        """One that was never there before, on a node that keeps it for a while."""
        load, number = self._scene.load, self._made
        self._made += 1
        directory = self._scene.lab.dir / "fleeting"
        layers = [MIB, self._random.randrange(1000, 300_000)]
        image = build(directory, f"docker.io/library/fleeting{number}:v1", layers, seed=1000 + number)
        self._scene.upstream.push(image, forget=False)
        shutil.rmtree(directory)
        keeper = self._random.choice([node for node in self.lasting if not node.has_docker])
        load.holders[image.name] = [keeper]
        problem = pull(keeper, image)
        if problem:
            raise Failed(f"{keeper} {image.name}: {problem}")
        self._fleeting.append(image)
        load.images.append(image)
        if len(self._fleeting) > _IMAGES:
            self._let_go(self._fleeting[0])

    def _let_go(self, image: Image) -> None:
        self._fleeting.remove(image)
        self._scene.load.images.remove(image)
        # somebody may be in the midst of choosing it, and finds it upstream
        (keeper,) = self._scene.load.holders[image.name]
        discard(keeper, image)

    def _another_leader(self) -> None:
        consul = self._scene.outside.consul
        entry = consul.kv_entry("spegel/leader")
        if entry is not None and "Session" in entry:
            consul.put(f"/v1/session/destroy/{entry['Session']}")
            self.leaders += 1

    def _restart_one(self) -> None:
        node = self._scene.nodes[-1 - self.restarts % _RESTARTED]
        if self.restarts % 4 < _RESTARTED:
            node.sidecar.kill9()
        else:
            status = node.sidecar.stop(20)
            if status:
                raise Failed(f"{node} ended with {status} and not in peace\n{node.sidecar.process.tail()}")
        self._scene.start(node)
        self.restarts += 1


def _tasks(node: Node) -> int | None:
    tasks = _metrics(node, "/debug/tasks")
    return None if tasks is None else len(tasks.splitlines())


def _metrics(node: Node, path: str) -> str | None:
    """None if it can't be asked."""
    try:
        answer = node.netns.request("GET", node.ip, METRICS_PORT, path, timeout=5)
    except (OSError, http.client.HTTPException):
        return None
    return answer.body.decode() if answer.status == 200 else None
