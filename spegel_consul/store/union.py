"""The union of several stores: content is present if one of them has it.

containerd keeps each namespace apart, and a store watches one namespace. A node that runs Docker and Nomad's containerd
driver has several, and a request does not name one. A node with one namespace uses its store without a union, so the
common case has no cost. A new rule about conflicts between stores belongs here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.store import Blob, Changed, Downloads, Image, Store
from spegel_consul.store.blob_files import absent, may_be_there
from spegel_consul.store.inventory import Advertised, CountedStore, StoredImage
from spegel_consul.store.watchers import Watchers
from spegel_consul.zerocopy.growing_file import GrowingFile


class UnionStore:
    """The union of ``stores``, in the order of their precedence.

    A name that several have is resolved by the one that has had it for the shortest time, because a namespace that is
    not used any more keeps old tags.
    """

    def __init__(self, stores: Sequence[CountedStore]) -> None:
        self._stores = tuple(stores)
        self._watchers = Watchers()
        self._published: set[str] = set()

    @property
    def problem(self) -> str | None:
        """The first store's problem if all stores have one, because content of a store without a problem is served."""
        problems = self._problems()
        return problems[0] if len(problems) == len(self._stores) and problems else None

    @property
    def warnings(self) -> tuple[str, ...]:
        problems = self._problems()
        return tuple(dict.fromkeys(problem for problem in problems if problem != self.problem))

    @property
    def version(self) -> int:
        return sum(store.version for store in self._stores)

    def resolve(self, name: str) -> Digest | None:
        store = self._youngest(name)
        return store.resolve(name) if store is not None else None

    def tag_age(self, name: str) -> float | None:
        store = self._youngest(name)
        return store.tag_age(name) if store is not None else None

    def _youngest(self, name: str) -> CountedStore | None:
        having = [store for store in self._stores if store.resolve(name) is not None]
        return min(having, key=partial(_age, name)) if len(having) > 1 else having[0] if having else None

    def describe(self, digest: Digest) -> Descriptor | None:
        return next((found for store in self._stores if (found := store.describe(digest)) is not None), None)

    def file(self, digest: Digest) -> str | None:
        found = [path for store in self._stores if store.describe(digest) is not None and (path := store.file(digest))]
        # check files, because a store may have lost one and not know yet, while another containerd still has it
        several = len(set(found)) > 1
        return next((path for path in found if not several or may_be_there(path)), None)

    def images(self) -> tuple[Image, ...]:
        named: dict[str, Image] = {}
        for store in self._stores:
            for image in store.images():
                if image.name not in named or self._youngest(image.name) is store:
                    named[image.name] = image
        return tuple(named[name] for name in sorted(named))

    def keys(self) -> frozenset[str]:
        return frozenset().union(*(store.keys() for store in self._stores))

    def stored_images(self) -> tuple[StoredImage, ...]:
        """Return the named images with their sizes, for the status page."""
        named: dict[str, StoredImage] = {}
        for store in self._stores:
            for stored in store.stored_images():
                if stored.image.name not in named or self._youngest(stored.image.name) is store:
                    named[stored.image.name] = stored
        return tuple(named[name] for name in sorted(named))

    def image_contents(self) -> Mapping[Digest, int]:
        """Return the sizes of all content of the named images, for the status page."""
        return {digest: size for store in self._stores for digest, size in store.image_contents().items()}

    def advertised(self) -> Advertised:
        """Return counts of announced names and content; content of several namespaces counts in each of them."""
        each = [store.advertised() for store in self._stores]
        return Advertised(
            sum((Counter(counts.tags) for counts in each), Counter()),
            sum((Counter(counts.images) for counts in each), Counter()),
            sum((Counter(counts.contents) for counts in each), Counter()),
        )

    @asynccontextmanager
    async def open(self, digest: Digest) -> AsyncIterator[Blob]:
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, digest)

    async def _enter(self, stack: AsyncExitStack, digest: Digest) -> Blob:
        """Open the content in the first store that still has its file. Raises BlobUnknown."""
        gone = absent(digest)
        for store in [store for store in self._stores if store.describe(digest) is not None]:
            try:
                return await stack.enter_async_context(store.open(digest))
            except BlobUnknown as exc:
                gone = exc
        raise gone

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        for store in self._stores:
            if (found := await store.downloading(digest)) is not None:
                return found
        return None

    async def peek(self, digest: Digest, most: int) -> bytes | None:
        for store in self._stores:
            if (found := await store.peek(digest, most)) is not None:
                return found
        return None

    async def downloads(self) -> Downloads:
        growing: dict[Digest, int] = {}
        ended: set[Digest] = set()
        for store in reversed(self._stores):  # the first store that has a download counts
            downloads = await store.downloads()
            growing.update(downloads.growing)
            ended.update(downloads.ended)
        return Downloads(growing, frozenset(ended - growing.keys()))

    def expect(self, digest: Digest) -> None:
        for store in self._stores:
            store.expect(digest)

    async def at_work(self) -> int | None:
        working = [size for store in self._stores if (size := await store.at_work()) is not None]
        return sum(working) if working else None

    def is_idle(self) -> bool:
        return all(store.is_idle() for store in self._stores)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Changed]]:
        await trio.lowlevel.checkpoint()
        with self._watchers.watch(frozenset(self._published)) as watch:
            yield watch

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as starting:
                for store in self._stores:
                    starting.start_soon(nursery.start, self._follow, store)
            task_status.started()

    async def _follow(self, store: Store, *, task_status: trio.TaskStatus[None]) -> None:
        """Run one store, and publish the changes of the union that follow from its changes."""
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            async with store.watch() as changes:
                self._publish(await anext(changes))
                task_status.started()
                async for changed in changes:
                    self._publish(changed)

    def _publish(self, changed: Changed) -> None:
        added = frozenset(key for key in changed.added - self._published if self._has(key))
        removed = frozenset(key for key in changed.removed & self._published if not self._has(key))
        self._published |= added
        self._published -= removed
        self._watchers.publish(Changed(added, removed))

    def _problems(self) -> list[str]:
        return [problem for store in self._stores if (problem := store.problem) is not None]

    def _has(self, key: str) -> bool:
        """Whether one of the stores has a digest or a name."""
        if isinstance(key, Digest):
            return self.describe(key) is not None
        return self.resolve(key) is not None


def _age(name: str, store: CountedStore) -> float:
    age = store.tag_age(name)
    return math.inf if age is None else age
