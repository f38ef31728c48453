"""``Store`` over a containerd: an index of its images and content that its events keep fresh.

One session is one connection.  It subscribes to events first and lists everything then, so that no change falls
between.  Afterwards events say where to look, and periodic listings find the changes without events:

    containerd 1.x tells of no content, only of images; no version tells what garbage collection took.

An event is a hint, never a fact: containerd is asked for the present state.  Events that come together (a pull on 2.1
makes one for each blob) are gathered for a moment and handled as one.  Three things bring the next listing forward: a
fresh session (an event may have come just before the subscription), a deleted image (its content will be collected
soon), and content that no image claims yet (a pull labels a blob a moment after its commit).

When the session ends, the index stays, because the files are still there and can be served.  The next session is tried
after a pause that doubles from 0.1 s to 10 s, with jitter.  A session must last before the pause becomes short again,
so that a containerd that crashes again and again is not listed without end.

A download whose ingest is gone was committed or aborted.  In 1.x nothing else tells of it before the image is there, so
containerd is asked for that digest, as for a digest that an event mentions.  An ingest of a few milliseconds falls
between two looks, so the same is done for content that expect() names.  containerd answers for this namespace only, and
the index decides whether the content may be shown.

A namespace that does not exist is an empty namespace, because containerd makes it with the first image.

A new reason to ask containerd, or to ask it sooner, belongs here.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
import trio

from spegel_consul.disk.threads import in_thread
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.store import Blob, Downloads
from spegel_consul.store.blob_files import blob_file
from spegel_consul.store.containerd.absence import Absence
from spegel_consul.store.containerd.awaited_content import AwaitedContent
from spegel_consul.store.containerd.conversion import ContentChanged, Event, ImageChanged, ImageDeleted
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable, EventStream
from spegel_consul.store.containerd.grpc_client import ContainerdClient
from spegel_consul.store.containerd.ingests import Ingests
from spegel_consul.store.containerd.reader import Reader, Unreadable
from spegel_consul.store.index import Snapshot, everything
from spegel_consul.store.indexed_store import IndexedStore
from spegel_consul.zerocopy.growing_file import GrowingFile

log = structlog.get_logger(__name__)

GATHER = 0.03
"""Seconds in which events that follow the first one are handled together with it."""

SOON = 1.0
"""Seconds until a listing that should not wait for its turn."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds between attempts to reach containerd."""


class ContainerdStore(IndexedStore):
    """Images and content of one namespace of the containerd at ``socket()``.

    That is asked before each attempt to connect, in a thread, so it may wait a moment. ``content_path``: root of the
    content store (``…/io.containerd.content.v1.content``) if it is not where containerd says; ``relist_interval``:
    seconds between listings that find what no event tells; ``expected``: whether it is worth a word if there is no
    such namespace; ``absence``: shared with the other stores of the same containerd.
    """

    def __init__(
        self,
        socket: Callable[[], Path],
        namespace: str,
        content_path: Path | None = None,
        accept: Callable[[str], bool] = everything,
        *,
        relist_interval: float = 30.0,
        expected: bool = True,
        absence: Absence | None = None,
    ) -> None:
        super().__init__(accept)
        self._find_socket = socket
        self._socket = Path()
        self._namespace = namespace
        self._content_path = content_path
        self._relist_interval = relist_interval
        self._reader = Reader()
        self._reader.directory = content_path
        self._problem = "images of containerd have not been listed yet"
        self._absence = absence or Absence()
        self._said_empty = not expected
        self._next_listing = 0.0
        self._ingests = Ingests(lambda: self._reader.directory, namespace, self._download_ended)
        self._awaited = AwaitedContent()
        self._hints: trio.MemorySendChannel[Event] | None = None

    def file(self, digest: Digest) -> str | None:
        directory = self._reader.directory
        return None if directory is None else blob_file(directory, digest)

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        if self._index.refuses(digest):
            await trio.lowlevel.checkpoint()
            return None
        return await self._ingests.open(digest)

    async def downloads(self) -> Downloads:
        return await self._ingests.downloads(self._index.refuses)

    def expect(self, digest: Digest) -> None:
        known = self._index.describe(digest) is not None or self._index.refuses(digest)
        if not known and digest not in self._awaited:
            self._download_ended(digest)

    async def at_work(self) -> int | None:
        return await self._ingests.at_work()

    def is_idle(self) -> bool:
        return self._ingests.is_idle()

    @asynccontextmanager
    async def open(self, digest: Digest) -> AsyncIterator[Blob]:
        await trio.lowlevel.checkpoint()
        try:
            blob = await self._reader.open(self._wanted(digest))
        except Unreadable:
            raise
        except BlobUnknown:
            self._forget(digest)
            raise
        try:
            yield blob
        finally:
            blob.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        pause = SHORTEST_PAUSE
        started = False

        def filled() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        while True:
            began = trio.current_time()
            self._socket = await in_thread(self._find_socket)
            try:
                await self._session(filled)
            except* ContainerdUnavailable as group:
                self._went_away(str(_first(group)))
            except* Exception:
                # unforeseen, so our own mistake: it costs a listing, not the sidecar
                log.exception("containerd session failed")
                self._went_away(f"the session with containerd at {self._socket} failed unexpectedly: see the log")
            filled()
            if trio.current_time() - began > LONGEST_PAUSE:
                pause = SHORTEST_PAUSE
            await trio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _session(self, filled: Callable[[], None]) -> None:
        """Until the connection is lost, which raises ContainerdUnavailable; calls ``filled`` when the index is."""
        async with (
            ContainerdClient(self._socket, self._namespace) as client,
            client.events() as events,
            trio.open_nursery() as nursery,
        ):
            self._reader.client = client
            try:
                send, receive = trio.open_memory_channel[Event](256)
                self._hints = send
                nursery.start_soon(_pump, events, send)
                if self._content_path is None:
                    self._reader.directory = await client.content_root()
                await self._list(client)
                self._list_within(SOON)
                await self._came_back(client)
                filled()
                while True:
                    batch = await self._gather(receive)
                    if batch:
                        await self._handle(client, batch)
                    if trio.current_time() >= self._next_listing:
                        await self._list(client)
            finally:
                self._reader.client = None
                self._hints = None

    async def _gather(self, receive: trio.MemoryReceiveChannel[Event]) -> list[Event]:
        """The next events that come together, or none when it is time for a listing. Awaited content is an event."""
        batch: list[Event] = []
        with trio.move_on_at(min(self._next_listing, self._awaited.next)):
            batch.append(await receive.receive())
        if batch:
            await trio.sleep(GATHER)
            while len(batch) < 1024:
                try:
                    batch.append(receive.receive_nowait())
                except trio.WouldBlock:
                    break
        batch.extend(map(ContentChanged, self._awaited.due(trio.current_time())))
        return batch

    def _download_ended(self, digest: Digest) -> None:
        """Have containerd asked for the content of an ingest that is gone."""
        self._awaited.add(digest, trio.current_time())
        if self._hints is not None:
            with suppress(trio.WouldBlock):
                self._hints.send_nowait(ContentChanged(digest))

    async def _handle(self, client: ContainerdClient, batch: Iterable[Event]) -> None:
        """Ask containerd about all that the events mention."""
        names: set[str] = set()
        digests: set[Digest] = set()
        for event in batch:
            match event:
                case ImageChanged(name):
                    names.add(name)
                case ImageDeleted(name):
                    names.add(name)
                    self._list_within(SOON)
                case ContentChanged(digest):
                    digests.add(digest)
        for name in names:
            record = await client.image(name)
            if record is None:
                self._drop_image(name)
            else:
                self._put_image(record)
        # an index leads to manifests, these to layers: with each that is read, more is known to ask for
        asked: set[Digest] = set()
        had: set[Digest] = set()
        while digests := digests.union(*map(self._index.reached, names)) - asked:
            had.update(digest for digest in digests if self._index.describe(digest) is not None)
            await self._look_for(client, digests)
            await self._read()
            asked |= digests
        self._publish()
        for digest in had:
            if self._index.describe(digest) is None:  # deleted
                self._ingests.forget(digest)
        for digest in filter(self._awaited.__contains__, asked):
            settled = self._index.describe(digest) is not None or self._index.refuses(digest)
            given_up = self._awaited.answered(digest, settled, trio.current_time())
            # the index tells what it has, and when it has it no more; or the namespace has never had it
            if settled or (given_up and not self._index.is_stray(digest)):
                self._ingests.forget(digest)
        if any(self._index.is_stray(digest) for digest in asked if digest not in self._awaited):
            self._list_within(SOON)

    async def _look_for(self, client: ContainerdClient, digests: set[Digest]) -> None:
        found = await client.find(digests)
        for content in found:
            self._index.put_content(content)
        for digest in digests.difference(content.digest for content in found):
            self._index.drop_content(digest)

    async def _list(self, client: ContainerdClient) -> None:
        """Make the index what containerd says now."""
        # images first: content that comes in between is there for images that come in between
        images = await client.images()
        self._apply(Snapshot(images, await client.contents()))
        await self._read()
        changed = self._publish()
        log.debug("containerd listed", images=len(images), added=len(changed.added), removed=len(changed.removed))
        self._next_listing = trio.current_time() + self._relist_interval * random.uniform(0.9, 1.1)

    async def _read(self) -> None:
        """Read the manifests that the index needs."""
        while unread := self._index.unread():
            documents = await self._reader.documents(unread)
            for content in unread:
                if content.digest in documents:
                    self._learn(content.digest, documents[content.digest])
                else:
                    self._index.drop_content(content.digest)

    def _list_within(self, seconds: float) -> None:
        self._next_listing = min(self._next_listing, trio.current_time() + seconds)

    def _went_away(self, reason: str) -> None:
        self._absence.began(self._namespace, reason)
        self._problem = reason

    async def _came_back(self, client: ContainerdClient) -> None:
        version = await client.version()
        if not self._index.keys() and not self._said_empty:
            namespaces = await client.namespaces()
            if self._namespace not in namespaces:
                self._said_empty = True
                log.warning(
                    "containerd has no such namespace: it appears with the first image, unless the name is wrong",
                    namespace=self._namespace,
                    namespaces=namespaces,
                    socket=str(self._socket),
                )
        was_away = self._absence.ended(self._namespace)
        if was_away or self._problem is not None:
            log.info(
                "containerd is here",
                socket=str(self._socket),
                version=version,
                namespace=self._namespace,
                directory=str(self._reader.directory),
                images=len(self.images()),
            )
        self._problem = None


async def _pump(events: EventStream, send: trio.MemorySendChannel[Event]) -> None:
    async for event in events:
        await send.send(event)


def _first(group: BaseExceptionGroup[ContainerdUnavailable]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
