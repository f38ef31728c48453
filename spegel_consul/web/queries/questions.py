"""Lookups and measurements for people: the nodes that have a key, and the speed of a pull.

Both ask other nodes and change nothing: the bytes of a measurement are hashed and dropped. They cost other nodes work,
so each has a limit of concurrency. A new query to other nodes belongs here, with such a limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from spegel_consul.http.peer_tls import is_plain_to_own
from spegel_consul.observable import Observable
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid, OCIError
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import RingError, host_port
from spegel_consul.web.node_views import Document, Node
from spegel_consul.web.queries.trial_pull import Piece, Puller, PullFailed

log = structlog.get_logger(__name__)

MOST_PROVIDERS = 20
LOOKUP_TIMEOUT = 3.0
MEASURE_TIMEOUT = 120.0
LONGEST_NAME = 1024


class BadQuestion(Exception):
    """The query is neither an image name nor a digest; the message is one line for people."""


class Busy(Exception):
    """Another measurement is running."""


def parse(text: str) -> tuple[str, Reference | None]:
    """The key in the ring of a digest or an image name, and the reference if it is a name. Raises BadQuestion."""
    text = text.strip()
    if not text:
        raise BadQuestion("name an image, such as docker.io/library/nginx:1.27, or a digest")
    if len(text) > LONGEST_NAME:
        raise BadQuestion(f"the query has {len(text)} characters; image names have at most 255, and a tag or digest")
    if Digest.begins(text):
        try:
            return Digest(text), None
        except DigestInvalid as exc:
            raise BadQuestion(exc.message) from None
    try:
        reference = Reference.parse(text)
    except OCIError as exc:
        raise BadQuestion(exc.message) from None
    return reference.key, reference


def parse_image(text: str) -> Reference:
    """The image that a query names. Raises BadQuestion, also for a digest alone."""
    _, reference = parse(text)
    if reference is None:
        raise BadQuestion("a digest alone does not name an image: ask for registry/name@digest")
    return reference


async def lookup(node: Node, key: str, names: Mapping[str, str], *, within: float = LOOKUP_TIMEOUT) -> Document:
    """The nodes that have ``key``: this one, and others in the order of their answers; times in milliseconds.

    ``names`` are those of :class:`ClusterMembers`, from the caller, because lookups for many keys need them once.
    """
    began = trio.current_time()
    providers: list[Document] = []
    problem = None
    with trio.move_on_after(within) as deadline:
        try:
            with node.ring.lookup(key, count=MOST_PROVIDERS) as found:
                async for provider in found:
                    providers.append(
                        {
                            "node": names.get(provider.peer_id),
                            "id": provider.peer_id,
                            "registry": host_port(*provider.registry),
                            "ms": _ms(began),
                        }
                    )
        except RingError as exc:
            problem = str(exc)
    if deadline.cancelled_caught:
        problem = f"not all members answered within {within:g} s"
    return {"key": key, "own": _has(node, key), "providers": providers, "ms": _ms(began), "problem": problem}


class Measurement:
    """An image that is being measured, or was. :meth:`changed` returns when there is something new to tell."""

    def __init__(self, reference: Reference) -> None:
        self.image = str(reference)
        self.lookup: Document | None = None
        self.pieces: dict[str, Piece] = {}
        self.problem: str | None = None
        self.missing = False
        self.took = 0.0
        self.done = False
        self._revision = Observable(0)

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return sum(piece.received for piece in self.pieces.values())

    def grew(self, piece: Piece) -> None:
        self.pieces[piece.digest] = piece
        self.touch()

    def touch(self) -> None:
        self._revision.set(self._revision.value + 1)

    def failed(self, reason: str) -> None:
        self.problem, self.done = reason, True
        self.touch()

    def documents(self) -> list[Document]:
        return [self.to_json()]

    async def changed(self) -> None:
        await self._revision.changed(self._revision.value)

    def to_json(self) -> Document:
        return {
            "image": self.image,
            "done": self.done,
            "lookup": self.lookup,
            "pieces": [piece.to_json() for piece in self.pieces.values()],
            "bytes": self.size,
            "ms": round(self.took * 1000, 3),
            "bytes_per_second": round(self.size / self.took) if self.took and self.size else None,
            "problem": self.problem,
            "missing": self.missing,
        }


class Measurer:
    """Measures one image at a time, through the mirror of ``node`` as its runtime would."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._busy = False

    def prepare(self, text: str) -> Measurement:
        """A measurement for :meth:`run`. Raises BadQuestion, or Busy if another one is running."""
        reference = parse_image(text)
        if self._busy:
            raise Busy("another measurement is going on; try again when it has ended")
        return Measurement(reference)

    async def run(self, measurement: Measurement) -> Measurement:
        """Look up, pull and verify the image; ``measurement`` has the result, or the failure. Raises only Busy."""
        if self._busy:
            raise Busy("another measurement is going on; try again when it has ended")
        self._busy = True
        try:
            await self._run(measurement)
        except Exception as exc:  # bytes of other nodes must not end more than this measurement
            log.exception("measurement failed", image=measurement.image)
            measurement.problem = f"the measurement failed: {type(exc).__name__}: {exc}"[:300].replace("\n", " ")
        finally:
            self._busy = False
            measurement.done = True
            measurement.touch()
        return measurement

    async def _run(self, measurement: Measurement) -> None:
        node, reference = self._node, Reference.parse(measurement.image)
        members = node.cluster_members()
        measurement.lookup = await lookup(node, reference.key, members.names)
        measurement.touch()
        headers = (("authorization", node.credentials.own),) if node.credentials is not None else ()
        began = trio.current_time()
        with trio.move_on_after(MEASURE_TIMEOUT) as deadline:
            try:
                async with Puller(
                    node.registry,
                    names=members.registries(),
                    progress=measurement.grew,
                    headers=headers,
                    tls=None if is_plain_to_own(node.tls) else node.tls,
                ) as puller:
                    await puller.pull(reference)
            except PullFailed as exc:
                measurement.problem, measurement.missing = str(exc), exc.missing
        if deadline.cancelled_caught:
            measurement.problem = f"given up after {MEASURE_TIMEOUT:g} s"
        measurement.took = trio.current_time() - began


def _has(node: Node, key: str) -> bool:
    found = node.store.resolve(key) if "/" in key else node.store.describe(Digest(key))
    return found is not None


def _ms(began: float) -> float:
    return round((trio.current_time() - began) * 1000, 3)
