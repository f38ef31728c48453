"""Serves the ring's protocols to other peers.

Each Kademlia stream that a peer opens is read and answered in order.  The number of streams per peer is bounded.  A
message that breaks the protocol ends its stream and counts towards a ban of the peer.

A new limit on what one peer may send belongs here; the content of answers belongs in ``responder``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import trio

from spegel_consul.peers import RingError
from spegel_consul.ring.claiming import Claiming
from spegel_consul.ring.dht.claim_messages import MAX_CLAIM_MESSAGE, WireVerdict, decode_claim, encode_verdict
from spegel_consul.ring.dht.claim_reports import What
from spegel_consul.ring.dht.messages import Frames, WireError, decode, decode_withdrawal, encode
from spegel_consul.ring.dht.protocol_ids import CLAIMS, KAD, WITHDRAW
from spegel_consul.ring.dht.records import Records
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.members.membership import Membership
from spegel_consul.ring.members.rate_limit import RateLimit
from spegel_consul.ring.net.host import Host, Stream
from spegel_consul.ring.responder import Answers

_TIMEOUT, _IDLE_TIMEOUT = 10.0, 600.0
_MAX_STREAMS_PER_PEER = 8
_MAX_REQUEST = 64 << 10
_AT_ONCE = 256  # bytes of requests that are answered without waking the task of their stream
_SLICE = 64  # messages of one peer that are answered between two checkpoints
_SLOW = 0.02
_CLAIM_EVERY, _CLAIM_BURST = 0.02, 50  # reports of one peer; further ones are answered "alone"


class Service:
    """Answers the questions of peers and takes their announcements."""

    def __init__(
        self,
        host: Host,
        background: Background,
        membership: Membership,
        records: Records,
        answers: Answers,
    ) -> None:
        self._host = host
        self._background = background
        self._membership = membership
        self._records = records
        self._answers = answers
        self._inbound: dict[bytes, int] = {}
        self._claim_limit = RateLimit(every=_CLAIM_EVERY, burst=_CLAIM_BURST)
        host.serve(KAD, self._serve)
        host.serve(WITHDRAW, self._serve_withdrawal)

    def serve_claims(self, claiming: Claiming) -> None:
        """Decide about the reports of peers, too."""
        self._host.serve(CLAIMS, partial(self._serve_claims, claiming))

    async def _serve(self, stream: Stream) -> None:
        """Answer the Kademlia messages that a peer sends on one stream."""
        peer = stream.peer
        with self._admitted(peer):
            if self._membership.table.get(peer) is None:
                self._background.spawn(self._membership.exchange.introduce, peer)
            frames = Frames(_MAX_REQUEST)
            while True:
                with trio.fail_after(_IDLE_TIMEOUT) as idle:
                    data = await stream.receive(partial(self._answer_at_once, stream, frames, idle))
                if not data:
                    break
                bodies = frames.feed(data)
                for start in range(0, len(bodies), _SLICE):
                    self._answer(stream, bodies[start:][:_SLICE])
                    # a peer beyond its share of records is read slowly, so that it does not delay the others
                    await trio.sleep(_SLOW if self._records.is_full_of(peer) else 0)
                self._membership.heard(peer)
                # released before the wait for the next ones, because the last batch of keys of each peer is 50 KiB
                data, bodies = b"", []
            stream.close()

    def _answer_at_once(self, stream: Stream, frames: Frames, idle: trio.CancelScope, data: bytes) -> bool:
        """Answer a few short requests; False if that is too much to be done at once. Raises WireError."""
        peer = stream.peer
        if len(data) > _AT_ONCE or self._records.is_full_of(peer):
            return False
        self._answer(stream, frames.feed(data))
        self._membership.heard(peer)
        now = trio.current_time()
        if idle.deadline < now + _IDLE_TIMEOUT / 2:
            idle.deadline = now + _IDLE_TIMEOUT
        return True

    def _answer(self, stream: Stream, bodies: Sequence[bytes]) -> None:
        """Send the answers to some messages together. Raises WireError."""
        answers = [self._answers.answer(stream.peer, decode(body)) for body in bodies]
        if out := b"".join(encode(answer) for answer in answers if answer is not None):
            stream.send(out)

    async def _serve_withdrawal(self, stream: Stream) -> None:
        """Forget the records that a peer withdraws; no keys mean all of them, because the peer leaves."""
        with self._admitted(stream.peer), trio.fail_after(_TIMEOUT):
            frames = Frames(_MAX_REQUEST)
            while data := await stream.receive():
                for body in frames.feed(data):
                    keys = decode_withdrawal(body)
                    # once without keys, because one read may bring thousands of empty messages
                    for start in range(0, len(keys) or 1, _SLICE):
                        for key in keys[start:][:_SLICE]:
                            self._records.remove(key, stream.peer)
                        await trio.lowlevel.checkpoint()
                    if not keys:
                        self._records.forget(stream.peer, trio.current_time())
            stream.close()

    async def _serve_claims(self, claiming: Claiming, stream: Stream) -> None:
        """Answer the reports of a peer about downloads. Junk ends the stream and does not count towards a ban."""
        peer = stream.peer
        with self._admitted(peer):
            frames = Frames(MAX_CLAIM_MESSAGE)
            while True:
                with trio.fail_after(_IDLE_TIMEOUT):
                    data = await stream.receive()
                if not data:
                    break
                late = False
                try:
                    claims = list(map(decode_claim, frames.feed(data)))
                except WireError as exc:
                    raise RingError(f"not a claim: {exc}") from exc
                known = self._membership.table.get(peer) is not None
                if not known:
                    self._background.spawn(self._membership.exchange.introduce, peer)
                for start in range(0, len(claims), _SLICE):
                    out = bytearray()
                    for group, report in claims[start:][:_SLICE]:
                        if self._claim_limit.admits(peer, trio.current_time()):
                            # a peer without a known address can't be a source
                            said = report if known else replace(report, serves=False, working=False)
                            out += encode_verdict(claiming.decide(peer, group, said))
                        else:
                            late = True
                            out += encode_verdict(WireVerdict(group, What.ALONE))
                    stream.send(bytes(out))
                    await trio.sleep(_SLOW if late else 0)
            stream.close()

    @contextmanager
    def _admitted(self, peer: bytes) -> Iterator[None]:
        """Count a stream of ``peer`` and its protocol errors. Raises RingError if it has too many streams."""
        try:
            if self._inbound.get(peer, 0) >= _MAX_STREAMS_PER_PEER:
                raise RingError("the peer has too many streams open")
            self._inbound[peer] = self._inbound.get(peer, 0) + 1
            try:
                yield
            finally:
                self._inbound[peer] -= 1
                if not self._inbound[peer]:
                    del self._inbound[peer]
        except WireError as exc:
            self._membership.protocol_error(peer, exc)
            raise
