"""Content that this node's runtime is still downloading, for a peer that follows the download.

A download may be shown only if a client of this machine asked the mirror for the digest
(:mod:`spegel_consul.registry.mirror.own_requests`). The peer's request is held until the first byte that it wants is
there, so that the peer's runtime can still be answered 404 and go on upstream. The runtime may be at other layers of
the image. So the wait goes on while the runtime is at work on anything, and ends soon if it stands still. It goes on,
too, while this node's mirror waits for the same content from another node, because a stall at the head of a chain must
not make all nodes of the chain refuse at once. The waits count anew when the keeper names another source. A request may
also come before the runtime's own; then it is held for a shorter time, and shown nothing until the runtime asks. While
a request is held, an interim answer a second tells the peer that this node lives and waits: a node that hangs sends
none.

A manifest is small and its media type is in its bytes. So it is sent when all of it is there, and verified first. The
bytes of a blob can't be verified before the download ends. The follower verifies them, as those of any peer.

Content that the store's index has learnt of meanwhile is left to a new plan (:class:`Arrived`). A new rule about what
is shown of a download, or how long a follower waits, belongs here; both paths to an answer use it. The end of a
download that has begun is in :mod:`spegel_consul.zerocopy.send_growing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from spegel_consul.disk.threads import read
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import MAX_MANIFEST_SIZE, OCTET_STREAM, manifest_media_type
from spegel_consul.oci.path import Kind, unknown
from spegel_consul.peers import PeerError
from spegel_consul.registry.mirror.fetch import TransferCut
from spegel_consul.registry.mirror.followers import WAIT, FollowedSend
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.validate_head import Head
from spegel_consul.registry.plan import Growing, Planner
from spegel_consul.store import Store
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.growth import Growth
from spegel_consul.zerocopy.outlet import Outlet
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import Truncated
from spegel_consul.zerocopy.send_growing import send_growing

NO_PROGRESS = 6.0
"""Seconds without any progress of the runtime after which a request is held no longer."""

NO_DOWNLOAD = 0.5
"""Seconds after which a request is held no longer while the runtime downloads nothing."""

UNASKED = 6.0
"""Seconds that a request is held for a digest that no client of this machine has asked for."""

MANIFEST = 2.0
"""Seconds that a request for a manifest is held until all of it is there."""

_INTERIM_EVERY = 1.0  # seconds between two interim answers to a request that is held
_LOOK = 0.05  # seconds between two searches for the download; the store shares its looks at the same rate
_LOOK_AT_OTHERS = 0.1  # seconds between two looks at everything else while the file is open, and has too few bytes
_ASK_EVERY = 1.0  # seconds between two questions to the runtime for a digest that it does not seem to download
_MOST = 1 << 40  # bytes of the largest size that is believed

CheckClient = Callable[[], object]
SendInterim = Callable[[], Awaitable[object]]


class Arrived(Exception):
    """The store's index has the content now, so the request needs another plan."""


class Followed:
    """A download whose first wanted byte is there, or the whole manifest ``body``."""

    def __init__(
        self,
        head: Head,
        send: FollowedSend,
        file: GrowingFile,
        body: bytes | None,
        check_client: CheckClient,
        in_chain: Callable[[], bool],
        growth: Growth,
    ) -> None:
        self.head = head
        self._in_chain = in_chain
        self._growth = growth
        self._send = send
        self._file = file
        self._body = body
        self._check_client = check_client

    async def send(self, outlet: Outlet, count: Callable[[int], object]) -> None:
        """Send all bytes of the head's range as they come; call ``count`` with the number of bytes of each piece.

        Raises TransferCut if the download ends before its last byte, or what the outlet raises.
        """
        head, following = self.head, self._send
        if self._body is not None:
            await outlet.put(self._body)
            count(len(self._body))
            return
        position = Position(head.stop - head.start)
        following.begin(self._file, head.start, position, trio.current_time())

        def gave(sent: int) -> None:
            count(sent)
            following.look(trio.current_time())

        try:
            await send_growing(
                outlet, self._file, head.start, position, gave, self._check_client, self._in_chain, self._growth
            )
        except PeerError as exc:
            raise TransferCut(f"the download of {head.digest} {exc}") from None
        except Truncated:
            raise TransferCut(f"the download of {head.digest} was begun anew") from None


class GrowingContent:
    """Opens downloads of the runtime of ``store`` for followers; the two paths share the mirror's limits."""

    def __init__(self, planner: Planner, store: Store, mirror: Mirror) -> None:
        self._planner = planner
        self._store = store
        self._mirror = mirror

    @asynccontextmanager
    async def open(
        self, plan: Growing, send_interim: SendInterim, check_client: CheckClient = lambda: None
    ) -> AsyncIterator[Followed]:
        """Wait for the first byte that the plan wants; the content can be sent inside of the context.

        ``send_interim`` sends an interim answer; ``check_client`` raises OSError if the client has left.
        Raises ManifestUnknown or BlobUnknown if there is nothing to show, RangeInvalid, or :class:`Arrived`.
        """
        digest = plan.request.reference.digest
        asked = digest is not None and self._mirror.own_requests.asked(digest, trio.current_time())
        with self._mirror.followers.one(plan.follower, plan.request, asked=asked) as send:
            search = _Search(self._planner, self._store, self._mirror, plan)
            try:
                head = await search.first_byte(send_interim, check_client)
                file = search.file
                assert file is not None
                body = None
                if plan.request.kind is Kind.MANIFEST:
                    body = await read(file.fd, head.size, 0)
                    media_type = manifest_media_type(body) if head.digest.fits(body) else None
                    if media_type is None:
                        raise unknown(plan.request, f"{head.digest} is downloaded, and is no manifest so far")
                    head = Head(head.digest, media_type, 0, head.size, head.size, partial=False)
                yield Followed(head, send, file, body, check_client, search.in_chain, self._mirror.followers.growth)
            finally:
                search.close()


class _Search:
    """The wait of one request for its first byte; ``file`` is the download, once it is found."""

    def __init__(self, planner: Planner, store: Store, mirror: Mirror, plan: Growing) -> None:
        assert plan.request.reference.digest is not None
        self._digest: Digest = plan.request.reference.digest
        self._planner = planner
        self._store = store
        self._mirror = mirror
        self._plan = plan
        self.file: GrowingFile | None = None
        self._size = 0  # bytes of the file at the last look
        self._next_question = 0.0
        self._unframed = 0.0  # time since which the runtime downloads it, and does not say how large it will be

    async def first_byte(self, send_interim: SendInterim, check_client: CheckClient) -> Head:
        """Return the head of the answer as soon as the first wanted byte of :attr:`file` is there."""
        began = since = told = trio.current_time()
        progress: tuple[object, ...] | None = None
        verdict = self._verdict()
        while True:
            if self._planner.own(self._plan.request, self._plan.wanted) is not None:
                raise Arrived
            await self._look()
            now = trio.current_time()
            asked = self._mirror.own_requests.asked(self._digest, now)
            if asked and self.file is None and now >= self._next_question:
                self._next_question = now + _ASK_EVERY
                self._store.expect(self._digest)  # the runtime may have got it between two looks
            head = self._head() if asked else None
            if head is not None:
                return head
            at_work, received, in_chain = await self._store.at_work(), self._received(), self.in_chain()
            found = self._size, received, at_work, in_chain
            if found != progress:
                progress, since = found, now
            if (present := self._verdict()) != verdict:
                verdict, began, since = present, now, now
            still = NO_DOWNLOAD if at_work is None and not received else NO_PROGRESS
            if in_chain:
                still = WAIT
            unframed = self._unframed and now - self._unframed >= NO_DOWNLOAD
            if unframed or now - since >= still or now - began >= self._longest(asked):
                raise self._nothing()
            check_client()
            if now - told >= _INTERIM_EVERY:
                told = now
                await send_interim()
            if self.file is not None:
                await self._mirror.followers.growth.wait(self.file, self._size, since, now + _LOOK_AT_OTHERS)
            else:
                await trio.sleep(_LOOK)

    def _longest(self, asked: bool) -> float:
        if self._plan.request.kind is Kind.MANIFEST:
            return MANIFEST
        return WAIT if asked else UNASKED

    async def _look(self) -> None:
        """Search the download unless it is open; close one that was given up."""
        if self.file is None:
            self.file = await self._store.downloading(self._digest)
        if self.file is None:
            return
        try:
            self._size = self.file.size()
            lost = self.file.abandoned()  # the runtime may begin anew
        except OSError:  # the file system has lost the file
            lost = True
        if self.file.total is not None:
            self._unframed = 0.0
        else:  # the runtime may say it in a moment
            lost, self._unframed = True, self._unframed or trio.current_time()
        if lost:
            self.close()

    def _head(self) -> Head | None:
        """Return the head of the answer if the first wanted byte is there. Raises an OCIError if it will never be."""
        file, plan = self.file, self._plan
        if file is None or file.total is None:
            return None
        size, total = self._size, file.total
        if not 0 < total <= _MOST or size > total:
            raise self._nothing()
        head = Head(self._digest, OCTET_STREAM, 0, total, total, partial=False)
        if plan.request.kind is Kind.MANIFEST:
            if total > MAX_MANIFEST_SIZE:
                raise self._nothing()
            return head if size == total else None
        if plan.wanted is not None:
            span = plan.wanted.within(total)[0]
            head = Head(self._digest, OCTET_STREAM, span.start, span.stop, total, partial=True)
        return head if size > head.start else None

    def _received(self) -> int:
        """Return the number of bytes of the content that this node's own mirror has received and may still hold."""
        return sum(trace.received() for trace in self._mirror.traces.live.values() if trace.key == self._digest)

    def in_chain(self) -> bool:
        """Whether this node's mirror gets the content for its own runtime, or waits for it, at this moment."""
        live = self._mirror.traces.live.values()
        return any(each.key == self._digest and each.method == "GET" and not each.client for each in live)

    def _verdict(self) -> object:
        follows = self._mirror.peers.follows
        return None if follows is None else follows.verdict(self._digest)

    def _nothing(self) -> Exception:
        return unknown(self._plan.request, f"this node does not have {self._plan.request.reference}")

    def close(self) -> None:
        """Close the download."""
        file, self.file, self._size = self.file, None, 0
        if file is not None:
            file.close()
