# What users do, all the time: some node pulls some image that it does not have, throws it away, and another one pulls
# another.  The runtimes are real and every pull has an end: too late is failed.  Beside that each node's ring is asked
# who has what; that costs little, so there are enough answers to see a short fault in them.
#
# A node can be spared while its runtime is down or its cable is out: no mirror can help there, and what was going on
# counts as nothing.

"""Pulls and lookups that never end, and what became of them."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from lab import cri, thorough
from lab.cluster import Node
from lab.containerd import PullError
from lab.image import Image, is_whole
from lab.process import Failed
from lab.sidecar import METRICS_PORT

PULL_TIMEOUT = 40.0
PULLERS = 3
_PAUSE = 0.1 if thorough.ALL else 0.5
_LOOKUP_EVERY = 0.25
_LOOKUP_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull that has ended. ``began`` is of the monotonic clock, ``problem`` is empty if the image is right."""

    node: str
    image: str
    began: float
    seconds: float
    problem: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """One question to a node's ring for an image that others have. ``seconds`` are those to the first answer."""

    node: str
    began: float
    seconds: float
    found: frozenset[str]


@dataclass(slots=True)
class _State:
    busy_since: float | None = None
    spared: int = 0
    times_spared: int = 0
    asked: bool = True


class Load:
    """Pulls of ``images`` on ``nodes``, except where they stay for good (``holders``, by the image's name)."""

    def __init__(self, nodes: Sequence[Node], images: list[Image], holders: dict[str, list[Node]]) -> None:
        self.nodes = nodes
        self.images = images
        self.holders = holders
        self.pulls: list[Pull] = []
        self.lookups: list[Lookup] = []
        self._states = {node.name: _State() for node in nodes}
        self._lock = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._broken: list[BaseException] = []

    def __enter__(self) -> Load:
        for number in range(PULLERS):
            self._start(self._pull_for_ever, random.Random(number))
        self._start(self._ask_for_ever)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PULL_TIMEOUT + 20)

    def check(self) -> None:
        """Raise what ended the load, if anything did: a load that isn't there proves nothing."""
        for problem in self._broken:
            raise Failed(f"the load has ended: {problem!r}") from problem
        assert all(thread.is_alive() for thread in self._threads)

    @contextmanager
    def spare(self, *nodes: Node) -> Iterator[None]:
        """Nothing is pulled on ``nodes``, and what was being pulled there counts as nothing."""
        with self._lock:
            for node in nodes:
                self._states[node.name].spared += 1
                self._states[node.name].times_spared += 1
        try:
            yield
        finally:
            with self._lock:
                for node in nodes:
                    self._states[node.name].spared -= 1
                self._lock.notify_all()

    @contextmanager
    def unasked(self, *nodes: Node) -> Iterator[None]:
        """The rings of ``nodes`` are not asked."""
        for node in nodes:
            self._states[node.name].asked = False
        try:
            yield
        finally:
            for node in nodes:
                self._states[node.name].asked = True

    def drained(self, since: float, timeout: float = PULL_TIMEOUT + 10) -> None:
        """Wait until every pull that began before ``since`` has ended."""
        deadline = time.monotonic() + timeout
        with self._lock:
            while any(state.busy_since is not None and state.busy_since < since for state in self._states.values()):
                if not self._lock.wait(deadline - time.monotonic()):
                    raise Failed(f"a pull has not ended after {timeout:g} s")

    def look_up(self, node: Node, image: Image) -> Lookup:
        """Ask ``node`` who has ``image``. Nobody is found when it can't be asked."""
        began = time.monotonic()
        found, first = set[str](), _LOOKUP_TIMEOUT
        try:
            answer = node.netns.request(
                "GET", node.ip, METRICS_PORT, f"/api/lookup?key={image.index}", timeout=_LOOKUP_TIMEOUT
            )
            if answer.status == 200:
                providers = json.loads(answer.body)["providers"]
                found = {provider["registry"].partition(":")[0] for provider in providers}
                first = min((provider["ms"] / 1000 for provider in providers), default=first)
        except (OSError, http.client.HTTPException):
            pass
        return Lookup(node.name, began, first, frozenset(found))

    def _start(self, target: Callable[..., None], *args: object) -> None:
        def run() -> None:
            try:
                target(*args)
            except BaseException as exc:
                self._broken.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pull_for_ever(self, source: random.Random) -> None:
        while not self._stop.is_set():
            with self._lock:
                free = [node for node in self.nodes if self._is_free(node)]
                if not free:
                    self._lock.wait(0.2)
                    continue
                node = source.choice(free)
                state = self._states[node.name]
                state.busy_since = began = time.monotonic()
                spared = state.times_spared
            image = source.choice([image for image in self.images if node not in self.holders[image.name]])
            problem = pull(node, image)
            seconds = time.monotonic() - began
            with self._lock:
                if state.times_spared == spared:
                    self.pulls.append(Pull(node.name, image.name, began, seconds, problem))
            self._discard(node, image, state)
            with self._lock:
                state.busy_since = None
                self._lock.notify_all()
            self._stop.wait(_PAUSE)

    def _is_free(self, node: Node) -> bool:
        state = self._states[node.name]
        return state.busy_since is None and not state.spared

    def _discard(self, node: Node, image: Image, state: _State) -> None:
        deadline = time.monotonic() + PULL_TIMEOUT
        while not self._stop.is_set():
            try:
                discard(node, image)
                return
            except (cri.CriError, Failed):
                if not state.spared and time.monotonic() > deadline:
                    raise
                self._stop.wait(0.2)  # its runtime is down

    def _ask_for_ever(self) -> None:
        for number in itertools.count():
            if self._stop.wait(_LOOKUP_EVERY):
                return
            node = self.nodes[number % len(self.nodes)]
            image = self.images[number // len(self.nodes) % len(self.images)]
            if self._states[node.name].asked and node not in self.holders[image.name]:
                found = self.look_up(node, image)
                if self._states[node.name].asked:
                    self.lookups.append(found)


def pull(node: Node, image: Image) -> str:
    """Have the node's runtime pull ``image``; returns what is wrong then, or nothing."""
    try:
        if node.has_docker:
            node.docker.pull(image.name, timeout=PULL_TIMEOUT)
        else:
            node.containerd.pull_cri(image.name, timeout=PULL_TIMEOUT)
    except PullError as exc:
        return str(exc).partition("--- end of")[0][:500]
    content = node.docker.content_path if node.has_docker else node.containerd.content_path
    return next((f"{digest} is not whole" for digest in image.digests if not is_whole(content, digest)), "")


def discard(node: Node, image: Image) -> None:
    """Remove ``image`` and its content. Raises CriError, Failed."""
    if not node.has_docker:
        cri.remove_image(node.containerd.sock, image.name)
    elif any(
        name.endswith(image.repository.removeprefix("library/") + f":{image.tag}") for name in node.docker.images()
    ):
        node.docker.docker("image", "rm", "--force", image.name)
