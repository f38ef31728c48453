# The one file that knows py-libp2p (PyPI libp2p; much of what is called here is not its public API, so the
# version is pinned).
#
# It takes from the package what is the protocol: keys, multistream-select, Noise, Yamux, the identify
# message.  It leaves out Swarm and BasicHost, which own connections, dialling and listening there, because
# in 0.8.1 these are where a node can be stopped or deafened from outside; libp2p_host.py has their part:
#
#   * an exception in one inbound stream (five bytes that are not UTF-8 do) stops the Swarm.  Here each
#     connection and each stream is a task that ends alone, and logs at debug;
#   * an inbound connection keeps its slot until the process ends.  Here it ends with its task;
#   * dialling waits 250 ms for no one, blacklists, dials twice, needs the peer's id, and closes under a
#     shield without end.  Here a dial is a task of the host with one deadline; whoever waits for it may go
#     away;
#   * a resource manager refuses the 257th connection, half-open ones block the others, plaintext is
#     accepted, wildcard addresses are advertised, IPv6 remotes are unknown.  Here are own limits, Noise and
#     Yamux only, and the address that the operator named.
#
# Its Yamux is used, but not trusted with memory (0.8.1 again): it grants up to 16 MiB per stream, notes with a
# warning that a peer sends more than it was granted and keeps it all, and keeps a stream that was reset for a
# minute and more if data waits on it.  Here the grant is smaller, a peer that exceeds it loses the connection,
# what waits on a stream that was reset is dropped, and a stream counts until both sides have ended it.
#
# What remains lies deeper: a task cancelled while Noise writes has used up a nonce for bytes that never
# left, which kills the connection, and a write to a closed socket succeeds silently.  Both end in Wire,
# which is the socket as the layers above see it: a write is queued whole without waiting, or raises; a task
# of the connection sends it.

"""Connections and streams as libp2p makes them: Noise, Yamux, multistream-select, identify."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import spegel_consul.ring.libp2p_namespace  # noqa: F401 - before anything of libp2p
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.upgrader import TransportUpgrader

from spegel_consul.ring import RingError, identity, peerid
from spegel_consul.ring.address import Address
from spegel_consul.ring.host import Handler, Identity, ProtocolRefused, Stream, StreamClosed, Unreachable
from spegel_consul.ring.outbox import Outbox, OutboxFull
from spegel_consul.ring.patience import Patience
from spegel_consul.ring.result import Result

log = structlog.get_logger(__name__)
# py-libp2p logs several lines, some with tracebacks, for whatever a peer does; this adapter says what matters
logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)

NEGOTIATION_TIMEOUT = 5.0
MAX_INBOUND_STREAMS = 64
"""Per connection."""

STREAM_BUFFER = 2 << 20
"""Bytes that wait for a peer which does not read, per stream; the longest member list has half of that."""

RECEIVE_BUFFER = 16 << 20
"""Bytes of a peer that wait to be read, per connection."""

FIN_TIMEOUT = 5.0
"""Seconds that a peer has to end its side of a stream whose handler is done."""

yamux.MAX_WINDOW_SIZE = 1 << 20  # what a stream's window may grow to, and the longest frame
_WINDOW_SLACK = 1 << 18  # it grants a little more than its target at times

_TRIM_AFTER = 60.0
_MAX_READ = 1 << 17  # the longest frame of Noise has 64 KiB
_CHUNK = 1 << 16
_MAX_NAME = 1024


class Layers:
    """What is the same for all connections of a node: its keys, and the protocols below streams."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._keys = create_new_key_pair(identity.seed(key))
        self._noise = Noise(self._keys, noise_privkey=create_noise_key_pair().private_key)
        self._upgrader = TransportUpgrader({NOISE: self._noise}, {TProtocol(YAMUX): _BoundedYamux})

    async def secure(self, wire: Wire, *, outbound: bool) -> Any:
        """Negotiate Noise. The result goes to :meth:`peer_of` and :meth:`multiplex`. Raises anything."""
        raw = RawConnection(wire, outbound)
        if outbound:
            await self._upgrader.security_multistream.select_transport(raw, True)
            # None: the peer proves who it is, and whoever dialled compares
            return await self._noise.get_pattern().handshake_outbound(raw, None)
        return await self._upgrader.upgrade_security(raw, False)

    @staticmethod
    def peer_of(secured: Any) -> bytes:
        """The binary id that the peer has proved."""
        return bytes(secured.get_remote_peer().to_bytes())

    async def multiplex(self, secured: Any) -> Any:
        """Negotiate Yamux. The result goes to :class:`Connection`. Raises anything."""
        # new_conn() would take its own Yamux, whichever class is named to it
        muxer: Any = await self._upgrader.muxer_multistream.select_transport(secured)
        return muxer(secured, secured.get_remote_peer(), is_initiator=secured.is_initiator)

    def describe(self, address: Address, protocols: Iterable[str]) -> bytes:
        """This node's identify message."""
        message = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version="spegel-consul",
            public_key=self._keys.public_key.serialize(),
            listen_addrs=[address.encode()],
            protocols=list(protocols),
        )
        return bytes(message.SerializeToString())


def read_description(body: bytes) -> Identity:
    """A peer's identify message. Raises RingError if it is none."""
    try:
        message = Identify.FromString(body)
    except DecodeError as exc:
        raise RingError(f"the peer's identify message is malformed: {exc}") from None
    return Identity(frozenset(message.protocols), tuple(message.listen_addrs))


class Wire(ReadWriteCloser):
    """The TCP stream below Noise: a write is whole and immediate, a read is exact."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._out = Outbox()
        self._in = bytearray()

    async def pump(self) -> None:
        while data := await self._out.take():
            await self._stream.send_all(data)

    async def write(self, data: bytes) -> None:
        if self._out.closed:
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        try:
            self._out.put(data)
        except OutboxFull as exc:
            self._out.close()
            raise ConnectionClosedError(str(exc), transport="tcp") from None

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_READ:
            raise ConnectionClosedError("a frame is impossibly long", transport="tcp")
        while len(self._in) < n:
            data = b"" if self._out.closed else await self._stream.receive_some(_CHUNK)
            if not data:
                raise ConnectionClosedError("the peer closed the connection", transport="tcp")
            self._in += data
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def close(self) -> None:
        self._out.close()
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # asked for by identify's "observed address" only


class _BoundedYamux(Yamux):
    """Yamux that ends the connection of a peer which sends more than it was granted."""

    async def _read_data_body(self, length: int) -> bytes:
        sizes = {number: len(buffer) for number, buffer in self.stream_buffers.items()}
        overrun = any(
            size > self.streams[number].target_recv_window + _WINDOW_SLACK
            for number, size in sizes.items()
            if number in self.streams
        )
        if overrun or sum(sizes.values()) + length > RECEIVE_BUFFER:
            log.debug("ring_window_overrun", peer=peerid.to_text(self.peer_id.to_bytes()))
            raise trio.TooSlowError  # the one error that ends the connection whatever the frame is
        return bytes(await super()._read_data_body(length))

    async def discard(self, stream: YamuxStream) -> None:
        """Forget a stream that was reset, and what was not read of it."""
        async with self.streams_lock:
            number = stream.stream_id
            if self.streams.get(number) is stream:
                self.stream_buffers[number].clear()
                self._finalize_stream_locked(stream, fully_closed=True)


class _Stream:
    """A Yamux stream whose writes are done by a task of the connection."""

    def __init__(self, connection: Connection, muxed: Any) -> None:
        self._connection = connection
        self._muxed = muxed
        self._out = Outbox(STREAM_BUFFER)
        self._in = bytearray()
        self._scope = trio.CancelScope()
        self._sent = trio.Event()
        self.is_reset = False
        connection.spawn(self._pump)

    @property
    def peer(self) -> bytes:
        return self._connection.peer

    def send(self, data: bytes) -> None:
        if self.is_reset or self._out.closed or self._connection.closed:
            raise StreamClosed("the stream is closed")
        try:
            self._out.put(data)
        except OutboxFull as exc:
            self.reset()
            raise StreamClosed(str(exc)) from None

    async def receive(self) -> bytes:
        if self._in:
            data = bytes(self._in)
            self._in.clear()
            return data
        if self.is_reset or self._connection.closed:
            raise StreamClosed("the stream is reset, or its connection was lost")
        with self._connection.reading():
            try:
                return bytes(await self._muxed.read(_CHUNK))
            except MuxedStreamEOF:
                if self._connection.closed or self._muxed.conn.event_shutting_down.is_set():
                    raise StreamClosed("the connection was lost") from None
                return b""
            except Exception as exc:
                raise StreamClosed(f"the stream broke: {exc!r}") from exc
        raise StreamClosed("the connection was lost")

    def close(self) -> None:
        self._out.close()

    def reset(self) -> None:
        if not self.is_reset:
            self.is_reset = True
            self._scope.cancel()
            self._connection.spawn(self._reset)

    async def read_exactly(self, n: int) -> bytes:
        """``n`` bytes, while the protocol is negotiated; what came after them waits for :meth:`receive`."""
        while len(self._in) < n:
            data = bytes(await self._muxed.read(_CHUNK))
            if not data:
                raise StreamClosed("the stream ended")
            self._in += data
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def finish(self) -> None:
        """Returns when both sides have ended the stream; the peer's is reset if that takes it long."""
        with trio.move_on_after(FIN_TIMEOUT):
            with suppress(StreamClosed):
                while await self.receive():
                    pass  # nobody is left who wants it
            if not self.is_reset:
                await self._sent.wait()  # ends by itself when the peer grants nothing
                return
        self.reset()

    async def _pump(self) -> None:
        with self._scope:
            try:
                while data := await self._out.take():
                    await self._muxed.write(data)
                await self._muxed.close()
            except Exception as exc:
                log.debug("ring_stream_broken", peer=peerid.to_text(self.peer), error=repr(exc))
                self.reset()
        self._sent.set()

    async def _reset(self) -> None:
        try:
            await self._muxed.reset()
            await self._muxed.conn.discard(self._muxed)
        except Exception as exc:
            log.debug("ring_reset_failed", peer=peerid.to_text(self.peer), error=repr(exc))


class _Negotiation(ReadWriteCloser):
    """A stream as multistream-select reads and writes it."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_NAME:
            raise StreamClosed("a protocol name is impossibly long")
        return await self._stream.read_exactly(n)

    async def write(self, data: bytes) -> None:
        self._stream.send(data)

    async def close(self) -> None:
        self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


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
        patience: Patience,
    ) -> None:
        self.dialled = dialled  # where it was made to, if it was made from here
        self.remote = remote  # else the address that it came from
        self._muxed = muxed
        self._patience = patience
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
    def reading(self) -> Iterator[None]:
        """What is within is left when the connection ends."""
        with trio.CancelScope() as read:
            self._reads.add(read)
            try:
                yield
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
            stream = _Stream(self, muxed)
            if self._inbound_streams >= MAX_INBOUND_STREAMS:
                stream.reset()
            else:
                self._inbound_streams += 1
                self.spawn(self._serve, stream)

    async def open(self, protocol: str, result: Result[Stream]) -> None:
        """Open and negotiate a stream; a task of the connection, so that nobody who waits can cancel it."""
        try:
            with self._patience.fail_after(NEGOTIATION_TIMEOUT):
                stream = _Stream(self, await self._muxed.open_stream())
                try:
                    channel = MultiselectCommunicator(_Negotiation(stream))
                    await MultiselectClient().select_one_of([TProtocol(protocol)], channel)
                except BaseException:
                    stream.reset()
                    raise
        except MultiselectClientError as exc:
            gone = self.closed or self._muxed.event_shutting_down.is_set()
            error = Unreachable if gone else ProtocolRefused
            result.fail(error(f"no stream for {protocol}: {exc}"))
        except Exception as exc:
            result.fail(Unreachable(f"no stream for {protocol}: {exc!r}"))
        else:
            if result.abandoned:
                stream.reset()
            result.set(stream)
        finally:
            result.fail(Unreachable("the connection was lost"))

    async def _serve(self, stream: _Stream) -> None:
        offered: dict[TProtocol | None, Any] = {TProtocol(protocol): None for protocol in self._handlers}
        try:
            with self._patience.fail_after(NEGOTIATION_TIMEOUT):
                channel = MultiselectCommunicator(_Negotiation(stream))
                protocol, _ = await Multiselect(offered).negotiate(channel)
            await self._handlers[str(protocol)](stream)
            await stream.finish()
        except Exception as exc:
            log.debug("ring_stream_failed", peer=peerid.to_text(self.peer), error=repr(exc))
            stream.reset()
        finally:
            self._inbound_streams -= 1

    async def _trim(self, may_trim: Callable[[bytes], bool]) -> None:
        while True:
            await trio.sleep(_TRIM_AFTER)
            if may_trim(self.peer) and not self._muxed.streams:
                self.drop()
