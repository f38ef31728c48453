"""One authenticated connection and its tasks.

All its tasks run in the nursery of the connection: Yamux, sending, one task per inbound stream, and the negotiation of
outbound streams.  A caller that opens a stream waits for a ``Result`` instead of negotiating itself, so cancelling the
caller does not cancel the negotiation.

A limit on the streams of one connection belongs here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.net.host import Handler, ProtocolRefused, Silent, Stream, Unreachable
from spegel_consul.ring.net.libp2p.stream import MuxedStream, Negotiation
from spegel_consul.ring.net.loop_time import LoopTime
from spegel_consul.ring.net.shared_result import Result

log = structlog.get_logger(__name__)

NEGOTIATION_TIMEOUT = 5.0
MAX_INBOUND_STREAMS = 64
"""Most open inbound streams per connection."""

_TRIM_AFTER = 60.0


class Connection:
    """An authenticated connection; its tasks live in ``nursery``."""

    def __init__(
        self,
        muxed: Any,
        nursery: trio.Nursery,
        handlers: Mapping[str, Handler],
        may_trim: Callable[[bytes], bool] | None,
        dialled: tuple[str, int] | None,
        remote: str,
        loop_time: LoopTime,
    ) -> None:
        self.dialled = dialled  # the dialled address of an outbound connection, else None
        self.remote = remote  # the remote IP address of an inbound connection, else ""
        self._muxed = muxed
        self._loop_time = loop_time
        self._handlers = handlers
        self._may_trim = may_trim
        self.peer: bytes = muxed.peer_id.to_bytes()
        self._nursery = nursery
        self._inbound_streams = 0
        self._reads: set[trio.CancelScope] = set()
        self.closed = False

    def spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task that ends with the connection at the latest."""
        if not self.closed:
            try:
                self._nursery.start_soon(task, *args)
            except RuntimeError:  # the nursery has just closed, and `closed` is not set yet
                self.closed = True

    def drop(self) -> None:
        self.end()
        self._nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Mark the connection as closed and cancel its reads, because a cancelled Yamux does not wake its readers."""
        self.closed = True
        for read in self._reads:
            read.cancel()
        for stream in list(self._muxed.streams.values()):
            self._muxed.wake(stream)

    @contextmanager
    def reading(self) -> Iterator[trio.CancelScope]:
        """Cancel the block when the connection ends."""
        with trio.CancelScope() as read:
            self._reads.add(read)
            try:
                yield read
            finally:
                self._reads.discard(read)

    async def start(self) -> None:
        """Start Yamux; returns when streams can be opened. Call :meth:`run` next."""
        self._nursery.start_soon(self._muxed.start)
        await self._muxed.event_started.wait()

    async def run(self) -> None:
        """Pass inbound streams to their handlers until the connection ends."""
        if self._may_trim is not None:
            self.spawn(self._trim, self._may_trim)
        while True:
            try:
                muxed = await self._muxed.accept_stream()
            except MuxedConnUnavailable:
                return
            stream = MuxedStream(self, muxed)
            if self._inbound_streams >= MAX_INBOUND_STREAMS:
                stream.reset()
            else:
                self._inbound_streams += 1
                self.spawn(self._serve, stream)

    async def open(self, protocol: str, result: Result[Stream]) -> None:
        """Open and negotiate a stream; runs as a task of the connection, so that no caller can cancel it."""
        try:
            with self._loop_time.fail_after(NEGOTIATION_TIMEOUT):
                stream = MuxedStream(self, await self._muxed.open_stream())
                try:
                    channel, client = MultiselectCommunicator(Negotiation(stream)), MultiselectClient()
                    # not select_one_of(), because it raises one error for a refusal, a reset and a timeout of its own
                    await client.handshake(channel)
                    await client.try_select(channel, TProtocol(protocol))
                except BaseException:
                    stream.reset()
                    raise
        except ProtocolNotSupportedError as exc:
            result.fail(ProtocolRefused(f"no stream for {protocol}: {exc}"))
        except trio.TooSlowError:
            result.fail(Silent(f"no stream for {protocol}: no answer in time"))
        except Exception as exc:
            result.fail(Unreachable(f"no stream for {protocol}: {exc!r}"))
        else:
            result.set(stream)
        finally:
            result.fail(Unreachable("the connection was lost"))

    async def _serve(self, stream: MuxedStream) -> None:
        offered: dict[TProtocol | None, Any] = {TProtocol(protocol): None for protocol in self._handlers}
        try:
            with self._loop_time.fail_after(NEGOTIATION_TIMEOUT):
                channel = MultiselectCommunicator(Negotiation(stream))
                protocol, _ = await Multiselect(offered).negotiate(channel)
            await self._handlers[str(protocol)](stream)
            await stream.finish()
        except Exception as exc:
            log.debug("ring_stream_failed", peer=peer_id_to_text(self.peer), error=repr(exc))
            stream.reset()
        finally:
            self._inbound_streams -= 1

    async def _trim(self, may_trim: Callable[[bytes], bool]) -> None:
        while True:
            await trio.sleep(_TRIM_AFTER)
            if may_trim(self.peer) and not self._muxed.streams:
                self.drop()
