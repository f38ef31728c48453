"""One question to one peer, and its acceptable answer.

A manifest or a small blob is read and verified before the answer is there. A new rule belongs here if it concerns the
exchange with one peer. The acceptance of a head is in :mod:`spegel_consul.registry.mirror.validate_head`, and the
choice among several answers in :mod:`spegel_consul.registry.mirror.fetch`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import trio

from spegel_consul.http.peer_client import PeerResponse
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.path import GROWING_HEADER, LOAD_HEADER, TAG_AGE_HEADER, ContentRequest, Kind
from spegel_consul.peers import PeerError, Provider
from spegel_consul.registry.mirror.following.group_claim import Follow
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.tags.tag_ages import parse_age
from spegel_consul.registry.mirror.trace import Trace
from spegel_consul.registry.mirror.validate_head import Head, judge, type_of


@dataclass(frozen=True, slots=True)
class Answer:
    """An acceptable answer of ``provider``. ``body`` is complete and verified if it is bytes."""

    provider: Provider
    head: Head
    body: bytes | PeerResponse
    times: tuple[float, float, float]
    """Times of the question, of the new connection (0 for an idle one), and of the first byte."""
    follow: Follow | None = None
    """If the provider is the source that this node follows."""
    grows: bool = False
    """Whether the source is still downloading the content itself."""

    def discard(self) -> None:
        """Give up the body."""
        if isinstance(self.body, PeerResponse):
            self.body.discard()
        if self.follow is not None:
            self.follow.close()


class Question:
    """Asks peers for the content of ``request``, one at a time."""

    def __init__(self, peers: MirrorPeers, request: ContentRequest, method: str, trace: Trace) -> None:
        self._peers = peers
        self._request = request
        # HEAD of a manifest becomes GET, because the media type in the answer is read from the manifest itself
        self.method = "GET" if request.kind is Kind.MANIFEST else method
        self._trace = trace
        self.refused_age = False
        """Whether a peer's tag was refused because of its age."""

    async def ask(
        self,
        provider: Provider,
        range_header: str | None,
        expected: Head | None,
        follow: Follow | None = None,
        first_byte: float | None = None,
        silence: float = math.inf,
    ) -> Answer:
        """Return the answer of ``provider``. Raises PeerError if it is not acceptable, and RangeInvalid.

        ``expected``: the required head, if any; ``follow``: if the peer may still be downloading the content;
        ``first_byte``: seconds to the head, if not those of the client's limits; ``silence``: seconds to the head or to
        the next interim answer.
        """
        peers, request, follows = self._peers, self._request, follow is not None
        target, headers = peers.question(request, range_header, self._trace.trace_headers, follow=follows)
        asked = time.perf_counter()
        response = await peers.client.request(
            provider.registry, self.method, target, headers, first_byte=first_byte, silence=silence
        )
        times = asked, response.connected, time.perf_counter()
        try:
            head = judge(response, request, range_header, expected)
            peers.loads.told(provider.registry, response.header(LOAD_HEADER), trio.current_time())
            if request.reference.digest is None:
                head = replace(head, tag_age=self._tag_age(response))
            body: bytes | PeerResponse = response
            if request.kind is Kind.MANIFEST:
                body = await peers.read(response, head, provider, "GET", blame=not follows)
                head = replace(head, media_type=type_of(body, head.media_type))
                peers.learn(head.digest, body, self._trace.client)
            elif self.method == "HEAD" or peers.is_small(head):
                body = await peers.read(response, head, provider, self.method, blame=not follows)
        except BaseException:
            response.discard()
            raise
        grows = follows and response.header(GROWING_HEADER) is not None
        return Answer(provider, head, body, times, follow, grows)

    def _tag_age(self, response: PeerResponse) -> int | None:
        """Return the age that the peer tells of its tag, or None. Raises PeerError if it is beyond --tag-max-age."""
        age, reference = parse_age(response.header(TAG_AGE_HEADER)), self._request.reference
        limits = self._peers.settings.tag_max_age
        if limits.refuses(reference, age):
            self.refused_age = True
            told = "does not tell the age of its tag" if age is None else f"has had the tag for {age} s"
            raise PeerError(f"{told}, and --tag-max-age is {limits.of(reference):g} s")
        return age
