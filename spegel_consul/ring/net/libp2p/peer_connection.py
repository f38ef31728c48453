"""A connection and its tasks."""

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
from spegel_consul.ring.net.host import Handler, ProtocolRefused, Stream, Unreachable
from spegel_consul.ring.net.libp2p.stream import MuxedStream, Negotiation
from spegel_consul.ring.net.loop_time import LoopTime
from spegel_consul.ring.net.shared_result import Result

log = structlog.get_logger(__name__)

NEGOTIATION_TIMEOUT = 5.0
MAX_INBOUND_STREAMS = 64
"""Per connection."""

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
        patience: LoopTime,
    ) -> None:
        self.dialled = dialled  # where it was made to, if it was made from here
        self.remote = remote  # else the address that it came from
        self._muxed = muxed
        self._loop_time = patience
        self._handlers = handlers
        self._may_trim = may_trim
        self.peer: bytes = muxed.peer_id.to_bytes()
        self._nursery = nursery
        self._inbound_streams = 0
        self._reads: set[trio.CancelScope] = set()
        self.closed = False

    def spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task as long as the connection stands."""
        if not self.closed:
            try:
                self._nursery.start_soon(task, *args)
            except RuntimeError:  # it has just ended, and nobody noted it yet
                self.closed = True

    def drop(self) -> None:
        self.end()
        self._nursery.cancel_scope.cancel()

    def end(self) -> None:
        """Nothing comes any more, and those who wait for it are told: a Yamux that is cancelled tells nobody."""
        self.closed = True
        for read in self._reads:
            read.cancel()

    @contextmanager
    def reading(self) -> Iterator[trio.CancelScope]:
        """What is within is left when the connection ends."""
        with trio.CancelScope() as read:
            self._reads.add(read)
            try:
                yield read
            finally:
                self._reads.discard(read)

    async def start(self) -> None:
        """Returns when streams can be opened; :meth:`run` comes next."""
        self._nursery.start_soon(self._muxed.start)
        await self._muxed.event_started.wait()

    async def run(self) -> None:
        """Hand streams to their protocols until the connection ends."""
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
        """Open and negotiate a stream; a task of the connection, so that nobody who waits can cancel it."""
        try:
            with self._loop_time.fail_after(NEGOTIATION_TIMEOUT):
                stream = MuxedStream(self, await self._muxed.open_stream())
                try:
                    channel, client = MultiselectCommunicator(Negotiation(stream)), MultiselectClient()
                    # not select_one_of(): a refusal, a reset and a time limit of its own are one error there
                    await client.handshake(channel)
                    await client.try_select(channel, TProtocol(protocol))
                except BaseException:
                    stream.reset()
                    raise
        except ProtocolNotSupportedError as exc:
            result.fail(ProtocolRefused(f"no stream for {protocol}: {exc}"))
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
