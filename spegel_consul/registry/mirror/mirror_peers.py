"""Peers as a source of content: how one is asked, how its answer is judged, and what is remembered of it.

A fetch, a transfer and the mirror share one :class:`MirrorPeers`, and each of the three knows only the ones before it:
fetch.py asks the peers, transfer.py fetches, and mirror.py opens both. So everything that two of them need belongs
here, and nothing that belongs to one request does.
"""

from __future__ import annotations

import functools
import random
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import field

import structlog
import trio

from spegel_consul.disk.threads import NoThread, in_thread
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_client import PeerClient, PeerResponse
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.metrics.counter import Count
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import MAX_MANIFEST_SIZE
from spegel_consul.oci.path import FOLLOW_HEADER, MIRRORED_HEADER, ContentRequest, Kind
from spegel_consul.peers import PeerError, Provider
from spegel_consul.places import Here
from spegel_consul.registry.mirror.expected_sizes import Sizes
from spegel_consul.registry.mirror.followers import Followers
from spegel_consul.registry.mirror.following.follows import Follows
from spegel_consul.registry.mirror.held_bodies import Feed, HeldBodies
from spegel_consul.registry.mirror.providers.address_policy import Permits, any_node
from spegel_consul.registry.mirror.providers.loads import Loads
from spegel_consul.registry.mirror.providers.nearness import CrossZone, Nearness
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.providers.provider_cache import RecentProviders
from spegel_consul.registry.mirror.providers.suspects import Address, Suspects
from spegel_consul.registry.mirror.providers.unverified_transfers import UnverifiedTransfers
from spegel_consul.registry.mirror.tags.age_limits import AgeLimits
from spegel_consul.registry.mirror.tags.tag_ages import TagAges
from spegel_consul.registry.mirror.tags.upstream_tags import UpstreamTags
from spegel_consul.registry.mirror.trace import TraceHeaders
from spegel_consul.registry.mirror.validate_head import Head, PeerBusy
from spegel_consul.ring import Router
from spegel_consul.store import Store
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.spool import SpoolSpace

log = structlog.get_logger(__name__)

SMALL = 256 << 10
"""Bytes up to which a blob is read into memory and verified at once, because hashing it is faster than starting a
thread."""

VERIFY_FIRST = 32 << 20
"""Bytes up to which a blob is held until it is verified, unless the settings say otherwise."""

UNSEARCHED = 1 << 20
"""Bytes up to which a blob is asked for at a provider of its image without a lookup of its own."""

_DISK = 0.5  # seconds that a disk may take to report its free space


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """``resolve_timeout``: seconds to wait for a provider while none is being asked; ``attempts``: how many
    providers are asked before giving up; ``hedge``: seconds after which another one is asked as well;
    ``verify``: whether blobs are hashed (manifests always are); ``verify_first``: bytes up to which a blob is held
    until it is verified, for at most ``hold`` seconds; ``runtime_verifies``: whether larger blobs for this node's own
    runtime are not hashed, because it does so; ``follow``: whether content that no node has is read from a
    node that is downloading it; ``cross_zone``: when nodes of other zones are asked; ``download_rate``: bytes per
    second from all peers together, None for any number; ``tag_max_age``: the ages from which on tags are not taken."""

    resolve_timeout: float = 0.2
    attempts: int = 3
    hedge: float = 0.1
    verify: bool = True
    verify_first: int = VERIFY_FIRST
    hold: float = 10.0
    runtime_verifies: bool = False
    follow: bool = False
    cross_zone: CrossZone = CrossZone.FALLBACK
    download_rate: int | None = None
    tag_max_age: AgeLimits = field(default_factory=AgeLimits)


@dataclass(frozen=True, slots=True)
class MirrorParts:
    """The parts of this node that the mirror stands on.

    ``router`` names the peers, and ``client`` asks them; ``credentials``: this node's own, for peers; ``permits``:
    which peers may be asked; ``spool_space`` is for bodies that are held; ``store``: where the downloads of this
    node's runtime are seen, for ``settings.follow``; ``here``: the place of this node; ``rng`` draws among providers;
    ``upstream_tags``: with them, tags are checked at their registries.
    """

    router: Router
    client: PeerClient
    metrics: Metrics
    settings: MirrorSettings = field(default_factory=MirrorSettings)
    credentials: Credentials | None = None
    permits: Permits = any_node
    spool_space: SpoolSpace = field(default_factory=lambda: SpoolSpace(None))
    store: Store | None = None
    here: Here = field(default_factory=Here)
    rng: random.Random = field(default_factory=random.Random)
    upstream_tags: UpstreamTags | None = None


@functools.lru_cache(maxsize=128)
def _quoted(namespace: str) -> str:
    return urllib.parse.quote(namespace, safe="")


def image_of(request: ContentRequest) -> str:
    """Return the key of the providers of the request's image, which is the key of no content."""
    return f"{request.reference.namespace}/{request.reference.repository}/"


class WrongBytes(PeerError):
    """The body does not have the digest."""


class MirrorPeers:
    """The peers of ``parts``, with the ``followers`` of this node."""

    def __init__(self, parts: MirrorParts, followers: Followers) -> None:
        self.followers = followers
        self.spool_space = parts.spool_space
        self.permits = parts.permits
        self._credentials = parts.credentials
        self.router = parts.router
        self.client = parts.client
        self.settings = parts.settings
        self.nearness = Nearness(parts.here, parts.settings.cross_zone, parts.metrics.received_bytes)
        self.penalties = Penalties()
        self.loads = Loads(parts.rng)
        rate = parts.settings.download_rate
        self.downloads = Pace(rate) if rate is not None else None
        self.recent = RecentProviders()
        self.sizes = Sizes()
        self.held_bodies = HeldBodies()
        self.suspects = Suspects()
        self.unverified = UnverifiedTransfers()
        self.tag_ages = TagAges(parts.store)
        self._choices: dict[str, Count] = {}
        self.follows = (
            Follows(
                parts.router,
                parts.store,
                parts.metrics,
                self.may_ask,
                followers.behind,
                near_only=self.nearness.near_only,
            )
            if parts.settings.follow and parts.store is not None
            else None
        )
        self._metrics = parts.metrics
        self._disk = trio.CapacityLimiter(2)  # a disk may hang
        self.on_resolved: Callable[[float], None] = parts.metrics.resolve_duration.labels("libp2p").observe

    def learn(self, digest: Digest, manifest: bytes, client: str = "") -> None:
        """Remember what a manifest for ``client`` says about other content: sizes, and their group.

        Only clients of this machine, "", change groups, because this node follows for its own runtime only, and a
        manifest of a stranger could put a blob into a group whose keeper the stranger is.
        """
        self.sizes.learn(manifest)
        if self.follows is not None and not client:
            self.follows.groups.learn(digest, manifest)

    def may_ask(self, provider: Provider) -> bool:
        """Whether the policy permits the provider, it is not in a zone that is not asked, and no penalty bars it."""
        return self.permits(provider) and self.nearness.permits(provider) and not self.penalties.bars(provider)

    def recent_of(self, request: ContentRequest) -> list[Provider]:
        """Return the recent providers of the content, or, of a small blob, those of other content of its image.

        The nearest are first.
        A lookup costs as much as a small blob. Large blobs are looked up, because all nodes would else take an image
        from the peer that gave them its manifest. A blob that no manifest names may be of another image.
        """
        digest = request.reference.digest
        found, size = self.recent.get(request.key), self.sizes.get(digest) if digest is not None else None
        if found or size is None or size > UNSEARCHED or request.kind is not Kind.BLOB:
            return found if len(found) < 2 else sorted(found, key=self.nearness.rank)
        return sorted(self.recent.get(image_of(request)), key=self.nearness.rank)

    def refused(self, provider: Provider, busy: PeerBusy) -> float | None:
        """Count a refusal, which is no failure. Return the seconds to wait for the peer; None: do not wait for it."""
        self._metrics.busy_peers.inc()
        return self.loads.refused(provider.registry, busy.hint, trio.current_time())

    def on_mismatch(self, provider: Provider, digest: Digest) -> None:
        """Count and penalize a peer whose bytes did not have the requested digest."""
        self._metrics.verification_failures.inc()
        self.penalties.lied(provider)
        log.warning("peer sent wrong bytes", peer=provider.peer_id, registry=provider.registry[0], digest=digest)

    def mismatched(self, digest: Digest, senders: Sequence[Provider], passed_on: Collection[Address] = ()) -> None:
        """Blame ``senders``, which sent one body one after the other, because it does not have its digest.

        The senders in ``passed_on`` could not verify it, because they were still downloading it, and are not blamed.
        """
        if len(senders) == 1 and senders[0].registry not in passed_on:
            self.on_mismatch(senders[0], digest)
            return
        self._metrics.verification_failures.inc()
        self.suspects.add(digest, senders, passed_on)
        log.warning("peers together sent wrong bytes", digest=digest, registries=[each.registry[0] for each in senders])

    def verified(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """The bytes of ``senders`` are right; who was suspected with them is asked after others for a while."""
        for provider in self.suspects.settle(digest, senders):
            self.penalties.slow(provider)

    def question(
        self, request: ContentRequest, range_header: str | None, trace_headers: TraceHeaders, *, follow: bool = False
    ) -> tuple[str, list[tuple[str, str]]]:
        """Return the target and the header fields of a request to a peer.

        The client's reference, range and trace headers are passed on, and no other part of its request. ``follow``:
        ask for content that the peer may still be downloading.
        """
        reference = request.reference
        name = reference.digest or reference.tag
        target = f"/v2/{reference.repository}/{request.kind.value}/{name}?ns={_quoted(reference.namespace)}"
        headers = [(MIRRORED_HEADER.decode(), "true"), ("accept", "*/*")]
        if follow and self.follows is not None:
            headers.append((FOLLOW_HEADER.decode(), self.follows.me))
        if self._credentials is not None:
            headers.append(("authorization", self._credentials.own))
        if range_header is not None:
            headers.append(("range", range_header))
        headers += trace_headers
        return target, headers

    def is_small(self, head: Head) -> bool:
        """Whether the content is verified, and small enough to be read into memory before the first byte is sent."""
        return self.settings.verify and not head.partial and head.size <= SMALL

    async def read(
        self, response: PeerResponse, head: Head, provider: Provider, method: str, *, blame: bool = True
    ) -> bytes:
        """Return a small body, complete and verified. Raises PeerError, also if the whole body takes too long.

        ``blame``: whether the provider is penalized for wrong bytes.
        """
        if method == "GET" and head.size > MAX_MANIFEST_SIZE:
            raise PeerError(f"has a manifest of {head.size} bytes, more than {MAX_MANIFEST_SIZE}")
        body, stall = b"", self.client.limits.stall
        with trio.move_on_after(stall) as reading:
            async with aclosing(response.chunks()) as pieces:
                body = b"".join([piece async for piece in pieces])
        if reading.cancelled_caught:
            raise PeerError(f"did not send {head.size} bytes within {stall:g} s", hung=True)
        if self.downloads is not None:
            self.downloads.spend(len(body))
        if method == "GET" and not head.digest.fits(body):
            self.mismatched(head.digest, [provider], () if blame else (provider.registry,))
            raise WrongBytes("sent bytes that do not have the digest")
        self.nearness.took(provider, len(body))
        return body

    @contextmanager
    def measured(self, feed: Feed) -> Iterator[None]:
        """Count what the provider of ``feed`` sends in the context, and how fast."""
        provider, before, waited = feed.provider, feed.position.taken, feed.throughput.seconds
        try:
            yield
        finally:
            self.nearness.took(provider, feed.position.taken - before, feed.throughput.seconds - waited)

    def hashes(self, head: Head, provider: Provider, client: str) -> bool:
        """Whether complete content from ``provider`` for ``client`` is hashed; "" is a client of this machine."""
        settings = self.settings
        if not settings.verify or not settings.runtime_verifies or client:
            return settings.verify
        doubted = head.disputed or bool(self.suspects.of(head.digest))
        large = head.size > settings.verify_first
        return doubted or not large or self.unverified.hashes(provider, trio.current_time())

    def sent_unhashed(self, digest: Digest, senders: Sequence[Provider]) -> None:
        """This node's runtime was sent all bytes of ``digest``, unhashed; nothing follows if hashing is off."""
        if self.settings.runtime_verifies:
            self.unverified.sent(digest, senders, trio.current_time())

    def own_runtime_asks(self, digest: Digest) -> None:
        """If this node's runtime was sent all bytes of ``digest`` and asks for it again, their senders are suspects."""
        senders = self.unverified.asked(digest, trio.current_time())
        if senders:
            self.suspects.add(digest, senders)
            registries = [each.registry[0] for each in senders]
            log.warning("the runtime asks again for what it was sent", digest=digest, registries=registries)

    def holds(self, head: Head) -> bool:
        """Whether the content is held: spooled and verified before the first byte is sent."""
        small = head.size <= self.settings.verify_first
        return self.settings.verify and not head.partial and (small or head.disputed)

    async def can_hold(self, head: Head) -> bool:
        """Whether the content can be verified before it is sent, which is required if its size is disputed.

        Content beyond the limit of what is held anyway may take a quarter of the spool space that is left, so that no
        number of peers that claim large sizes takes away the space of others.
        """
        if not self.settings.verify or head.partial:
            return False
        if head.size <= self.settings.verify_first:
            return True
        with trio.move_on_after(_DISK):
            with suppress(NoThread):
                spare = await in_thread(self.spool_space.spare, self._disk)
                return head.size <= spare // 4
        return False

    async def is_to_be_held(self, head: Head) -> bool:
        """Whether the content is held: also if its digest is in doubt, within the same space as what is disputed."""
        return self.holds(head) or (bool(self.suspects.of(head.digest)) and await self.can_hold(head))

    def tag_answered(self, choice: str) -> None:
        """Count a tag by how its digest was chosen; see the metric."""
        if choice not in self._choices:
            self._choices[choice] = self._metrics.tag_choices.labels(choice)
        self._choices[choice].inc()

    def held(self, result: str) -> None:
        """Count the result of holding a body; see the metric."""
        self._metrics.verify_first.labels(result).inc()
