"""The ``Store`` protocol: what this node has, and how its bytes are read.

A store answers from an index in memory, so that no request waits for gRPC or a disk; only opening a blob touches a
file.  ``run()``, a task of the sidecar, keeps the index fresh.  Each change of what the node can serve is delivered to
the watchers, and the ring announces it.

The index may lag behind the runtime in both directions.  A missing arrival costs a lookup.  A missing deletion shows
when the blob is opened, which raises BlobUnknown and corrects the index.

A method belongs in ``Store`` if the registry, the mirror or the announcer needs it of every store; the conformance
suite runs against each implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from typing import Protocol, runtime_checkable

import trio

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.zerocopy.growing_file import GrowingFile


@dataclass(frozen=True, slots=True)
class Changed:
    """Keys that the node began or ceased to be able to serve: digests and full image names."""

    added: frozenset[str]
    removed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Image:
    """One named image: ``docker.io/library/nginx:1.27`` and the digest of its manifest or index."""

    name: str
    digest: Digest


@runtime_checkable
class Blob(Protocol):
    """Content that is open for reading. Not safe for use by two tasks at once."""

    def fileno(self) -> int | None:
        """A descriptor of a plain file that holds exactly the content, or None if there is no such file."""
        ...

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes ``[start, stop)`` in order, in pieces of at most 1 MiB.

        Raises BlobUnknown if the content went away meanwhile.
        """
        ...


@dataclass(frozen=True, slots=True)
class Downloads:
    """The downloads of a runtime: ``growing``, with their present sizes in bytes, and those that have ``ended`` in the
    last minutes, in success or not."""

    growing: Mapping[Digest, int] = field(default_factory=dict)
    ended: frozenset[Digest] = frozenset()


class Store(Protocol):
    """What this node has.

    Everything answers from memory but ``open``, ``downloading``, ``downloads``, ``peek``, ``at_work``, ``run`` and
    iterating ``watch``.
    """

    @property
    def problem(self) -> str | None:
        """Why the store can't answer now, in one line for people; None when it is ready."""
        ...

    @property
    def version(self) -> int:
        """Another number whenever ``resolve`` or ``describe`` may say something else than before."""
        ...

    def resolve(self, name: str) -> Digest | None:
        """The digest behind a full image name such as ``docker.io/library/nginx:1.27``, or None."""
        ...

    def tag_age(self, name: str) -> float | None:
        """Seconds since the runtime wrote that the full image name stands for the digest of ``resolve``; None: unknown.

        See :mod:`spegel_consul.store.tag_times`.
        """
        ...

    def describe(self, digest: Digest) -> Descriptor | None:
        """Size and media type of content that this node has, or None."""
        ...

    def file(self, digest: Digest) -> str | None:
        """The path of a plain file that holds exactly this content, or None if there is no such file.

        For those who can't wait for ``open``; the file may be gone by the time it is opened.
        """
        ...

    def images(self) -> tuple[Image, ...]:
        """All named images that the node has whole."""
        ...

    def keys(self) -> frozenset[str]:
        """Everything that the node can serve: digests of content and full image names."""
        ...

    def open(self, digest: Digest) -> AbstractAsyncContextManager[Blob]:
        """Open content for reading. Raises BlobUnknown if this node does not have it (any more)."""
        ...

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        """Open the file of content that the runtime is downloading now; the caller closes it.

        Content that was committed a moment ago is found too, even if the index does not know it yet. None if there is
        no such download, and for a download that can't be read. The bytes are not verified.
        """
        ...

    async def peek(self, digest: Digest, most: int) -> bytes | None:
        """The bytes of the content directory's file, even if the index does not know the content, or not yet.

        They are for this process alone, and not verified: they may be of another namespace. None if only refused images
        have the content, if there is no such file, or if it has more than ``most`` bytes.
        """
        ...

    def expect(self, digest: Digest) -> None:
        """Ask the runtime soon whether it has content, which it may have downloaded without being seen at it."""
        ...

    async def downloads(self) -> Downloads:
        """All unfinished downloads of the runtime, by a look at the disk that begins now."""
        ...

    async def at_work(self) -> int | None:
        """Bytes of all unfinished downloads of the runtime together, or None if there is none.

        Another number than before tells that the runtime is at work. Calls within 50 ms share one look at the disk.
        """
        ...

    def is_idle(self) -> bool:
        """Whether it is certain, without a look at the disk, that ``at_work`` would be None."""
        ...

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Changed]]:
        """Changes from now on; the first item tells everything that is there already.

        A slow watcher gets several changes folded into one, never an unbounded queue.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the index fresh until cancelled; ``started()`` when the first attempt to fill it has ended.

        Never raises because the runtime is away: it says so in ``problem`` and tries again with back-off.
        """
        ...
