"""Groups: the content of one image, which one node downloads and the others follow.

A group is named by the digest of a manifest, because the blobs of one image must come along one way: claims for single
blobs make nodes wait for each other. A config or a layer belongs to the group of the manifest that names it. An index
is a group of its own, and so is a blob of no known manifest.

Several manifests may name a layer. Of the groups that this node is at work on, the one with the smallest digest counts,
in whatever order nodes learn of them: two nodes that pull two images with common layers would else wait for each other,
each by another group. With this order a node that waits by one group waits for a node that waits by the same or by a
smaller one. If this node is at work on none of them, the manifest that was learnt last counts, because it is the one
that is being pulled.

A manifest is learnt when it passes through the mirror. If no peer has it, the runtime takes it from upstream, and
commits it before it asks for the first blob. So the mirror remembers for which manifests the runtime has just asked,
and reads them at the next request for a blob. Their files are read, because the index need not know them by then. A
manifest that was in the store before this process began is never asked for. It is looked for when the runtime asks for
a blob of no known manifest.

A new rule about what belongs to a group belongs here; what a node does for a group belongs to
:mod:`spegel_consul.registry.mirror.following`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import MANIFESTS, MAX_MANIFEST_SIZE
from spegel_consul.oci.path import ContentRequest, Kind
from spegel_consul.registry.mirror.expected_sizes import named_blobs
from spegel_consul.store import Store

_MOST = 8192  # blobs of stored manifests
_MOST_KNOWN, _MOST_GROUPS = 4096, 256  # blobs and manifests that are pulled; a node is at work on 256 groups at most
_MOST_EXPECTED = 32
_EXPECTED_FOR = 60.0  # seconds after the request for a manifest in which its blobs are asked for
_TRIES = 8  # to read one stored manifest
_TRY_AFTER = 0.05  # seconds to the second try to read an expected manifest; each pause is twice the one before
_READ = 0.5  # seconds that reading manifests may take in one request
_MOST_STORED, _SEARCH_EVERY = 512, 5.0  # stored manifests that one search reads, and seconds between two searches


@dataclass(slots=True)
class _Expected:
    """A manifest that the runtime asked for, and when it is looked for in the store: it may never come there."""

    until: float
    next_try: float = 0.0
    pause: float = _TRY_AFTER


class Groups:
    """The groups of digests; manifests that the runtime took from upstream are read from ``store``.

    ``at_work``: the groups that this node is at work on at each moment.
    """

    def __init__(self, store: Store, at_work: Iterable[str] = ()) -> None:
        self._store = store
        self._at_work = at_work
        self._group_of: BoundedDict[str, str] = BoundedDict(_MOST_KNOWN)
        self._contents: BoundedDict[str, dict[str, int]] = BoundedDict(_MOST_GROUPS)
        self._expected: BoundedDict[Digest, _Expected] = BoundedDict(_MOST_EXPECTED)
        self._stored: BoundedDict[str, Digest] = BoundedDict(_MOST)  # by blob: a manifest that the store has
        self._read: BoundedDict[Digest, int] = BoundedDict(_MOST)  # tries to read it; _TRIES once it was read
        self._next_search = -math.inf
        self._reading = trio.Lock()

    def learn(self, digest: str, manifest: bytes) -> None:
        """Learn the group of ``manifest``, which has this digest. Bytes that are no JSON object are ignored."""
        try:
            contents = dict(named_blobs(manifest))
        except (ValueError, RecursionError, AttributeError):
            return
        self._expected.pop(Digest(digest), None)
        self._contents[digest] = {digest: len(manifest), **contents}
        for each in contents:
            self._group_of[each] = digest

    def expect(self, digest: Digest) -> None:
        """Note that the runtime asks for a manifest, which it may take from upstream."""
        self._expected[digest] = _Expected(trio.current_time() + _EXPECTED_FOR)

    def contents(self, group: str) -> Mapping[str, int]:
        """Return the digests of the group with their sizes; the group's own digest with size 0 if it is not known."""
        return self._contents.get(group, {group: 0})

    def known(self, digest: Digest) -> str:
        """Return the group of ``digest`` by the manifests that are known; the digest itself if none names it."""
        at_work = [group for group in self._at_work if digest in self._contents.get(group, ())]
        return min(at_work) if at_work else self._group_of.get(digest, digest)

    def at_once(self, request: ContentRequest) -> str | None:
        """Return the group of the request, which names a digest; None if manifests must be read before."""
        digest = request.reference.digest
        assert digest is not None
        if request.kind is Kind.MANIFEST:
            self.expect(digest)
            return digest
        idle = not self._reading.locked() and digest not in self._stored and trio.current_time() < self._next_search
        if self._expected or (digest not in self._group_of and not idle):
            return None
        return self.known(digest)

    async def of(self, request: ContentRequest) -> str:
        """Return the group of the request, which names a digest."""
        digest, group = request.reference.digest, self.at_once(request)
        assert digest is not None
        if group is None:
            with trio.move_on_after(_READ):
                async with self._reading:  # of several requests for blobs of one image, one reads
                    await self._read_expected()
                    if digest not in self._group_of:
                        await self._search(digest)
            group = self.known(digest)
        return group

    async def _read_expected(self) -> None:
        for digest, expected in list(self._expected.items()):
            now = trio.current_time()
            if expected.until <= now:
                self._expected.pop(digest, None)
            elif now >= expected.next_try:
                expected.next_try, expected.pause = now + expected.pause, 2 * expected.pause
                manifest = await self._manifest(digest)
                if manifest is not None and digest.fits(manifest):
                    self._expected.pop(digest, None)
                    self.learn(digest, manifest)

    async def _search(self, blob: Digest) -> None:
        """Learn a manifest of the store that names ``blob``, if there is one."""
        now = trio.current_time()
        if blob not in self._stored and now >= self._next_search:
            self._next_search = now + _SEARCH_EVERY
            self._forget_lost()
            # those last whose reading failed, or took so long that it was cancelled
            for manifest in sorted(self._unread(), key=self._tried)[:_MOST_STORED]:
                self._read[manifest] = self._tried(manifest) + 1
                body = await self._manifest(manifest)
                if body is None:
                    continue
                self._read[manifest] = _TRIES
                with suppress(ValueError, RecursionError, AttributeError):
                    for each, _ in named_blobs(body):
                        self._stored[each] = manifest
        found = self._stored.get(blob)
        if found is not None and (body := await self._manifest(found)) is not None and found.fits(body):
            self.learn(found, body)

    def _forget_lost(self) -> None:
        """Forget the manifests that the store lost, because otherwise all that it ever had would be remembered."""
        for read in [each for each in self._read if self._store.describe(each) is None]:
            del self._read[read]
        for blob in [each for each, manifest in self._stored.items() if manifest not in self._read]:
            del self._stored[blob]

    def _tried(self, manifest: Digest) -> int:
        return self._read.get(manifest, 0)

    def _unread(self) -> Iterator[Digest]:
        """Yield the stored manifests that were not read yet."""
        keys = self._store.keys()
        for key in keys:
            if isinstance(key, Digest) and self._tried(key) < _TRIES:
                content = self._store.describe(key)
                if content is not None and content.media_type in MANIFESTS:
                    yield key

    async def _manifest(self, digest: Digest) -> bytes | None:
        """Return the bytes under ``digest`` if the store has them, and they are not too many for a manifest."""
        content = self._store.describe(digest)
        if content is not None and content.size > MAX_MANIFEST_SIZE:
            return None
        if content is not None:
            with suppress(BlobUnknown):
                async with self._store.open(digest) as blob:
                    return b"".join([piece async for piece in blob.chunks(0, content.size)])
        # the runtime has committed it, but the index learns that late, or never if the download took milliseconds
        return await self._store.peek(digest, MAX_MANIFEST_SIZE)
