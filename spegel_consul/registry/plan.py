"""Decides what to do with a request for content, without I/O.

Two paths lead to an answer, the fast path and the ASGI path, and they must never disagree. So both ask the one
:class:`Planner`. A plan needs the request's text and the index in memory only, so nothing here waits.

A new rule belongs here if it decides, from a request and the index, whether this node answers with its own content,
with a peer's, or with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.errors import NameUnknown, TooManyRanges, Unauthorized, Unsupported
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import INDEXES, MANIFESTS
from spegel_consul.oci.path import FOLLOW_HEADER, MIRRORED_HEADER, ContentRequest, Kind, parse_content_path, unknown
from spegel_consul.oci.ranges import ByteRange, Ranges, parse_ranges
from spegel_consul.oci.reference import DEFAULT_REGISTRY, Reference
from spegel_consul.peers import RingError, peer_id_from_text
from spegel_consul.registry.mirror.tags.age_limits import AgeLimits
from spegel_consul.store import Store

_DOCKERD = b"docker/"
"""Prefix of dockerd's User-Agent. Without the containerd image store, dockerd names no registry in its requests, and
it has mirrors for docker.io only (moby distribution/registry.go)."""

_RUNTIMES = (b"containerd/", _DOCKERD)
_ONE_SOURCE = (b"containers/", b"skopeo/", b"cri-o/", b"Buildah/", b"buildah/", b"libpod/")
"""Prefixes of the User-Agent of clients that take an image from one source: what uses containers/image chooses a mirror
by its manifest, and fails the pull if that mirror lacks a blob (image/docker/docker_image_src.go)."""
_REMEMBERED = 512
_MEMORABLE = 512  # bytes of path, query and namespace; no runtime sends longer ones regularly


@dataclass(frozen=True, slots=True)
class Own:
    """Send content that this node has: all of it, or ``spans``, the ranges of ``wanted`` that this content has."""

    request: ContentRequest
    content: Descriptor
    wanted: Ranges | None = None
    spans: tuple[ByteRange, ...] = ()

    @property
    def partial(self) -> bool:
        return bool(self.spans)

    @property
    def bounds(self) -> tuple[int, int]:
        """The first byte of the content that is sent, and the one after the last; for at most one range."""
        return (self.spans[0].start, self.spans[0].stop) if self.spans else (0, self.content.size)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Ask peers for the content, or for the ranges ``wanted`` of it."""

    request: ContentRequest
    wanted: Ranges | None = None

    @property
    def range_header(self) -> str | None:
        """The Range header for a peer, or None if the client wants all of the content."""
        return None if self.wanted is None else self.wanted.header


@dataclass(frozen=True, slots=True)
class Growing:
    """Send content that this node's runtime downloads now, or at most one range of it, to the peer ``follower``.

    Whether there is such a download, and whether it may be shown, :mod:`spegel_consul.registry.growing` finds out.
    """

    request: ContentRequest
    wanted: Ranges | None
    follower: str


class Planner:
    """Plans with the index of ``store`` and the filter ``images``. ``credentials``, if any, are required of clients.

    ``follow``: whether peers may be sent content that this node still downloads. ``own_age``: the age of an own tag,
    which clients that are no peers get only within ``tag_max_age``.
    """

    def __init__(
        self,
        store: Store,
        images: ImageFilter,
        credentials: Credentials | None = None,
        *,
        follow: bool = False,
        own_age: Callable[[Reference], float | None] = lambda reference: None,
        tag_max_age: AgeLimits | None = None,
    ) -> None:
        self._store = store
        self._images = images
        self._credentials = credentials
        self._follow = follow
        self._own_age = own_age
        self._tag_max_age = tag_max_age or AgeLimits()
        # parsed paths are cached, because runtimes repeat a few and parsing costs more than the rest of a plan
        self._parse = lru_cache(_REMEMBERED)(self._parse_accepted)

    @property
    def version(self) -> int:
        """A number that changes whenever :meth:`plan` may return another plan for the same request."""
        return self._store.version if self._credentials is None else self._store.version + self._credentials.version

    def upstream_authorization(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Return the client's credentials for the image's registry; what this node itself requires is none."""
        found = headers.get(b"authorization") if self._credentials is None else None
        return found.decode("latin-1") if found is not None else None

    def is_lasting(self, request: ContentRequest) -> bool:
        """Whether the plan holds until the version changes, because no limit of a tag's age is reached meanwhile."""
        return self._tag_max_age.of(request.reference) is None

    def check(self, authorization: bytes | None) -> None:
        """Raise Unauthorized if credentials are required and ``authorization``, a field value, is not one of them."""
        if self._credentials is not None and not self._credentials.accept(authorization):
            raise Unauthorized("this registry needs basic authentication: see --basic-auth-file")

    def plan(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: Mapping[bytes, bytes],
        *,
        from_this_machine: bool,
    ) -> Own | Elsewhere | Growing:
        """Return the plan for a request. ``path`` and ``query`` are undecoded, the names of ``headers`` in lower case.

        The fast path remembers plans by the request's bytes. So a plan must depend on nothing but these bytes,
        ``from_this_machine`` and :attr:`version`, unless it is not :meth:`is_lasting`.

        Raises the OCIError to answer with.
        """
        self.check(headers.get(b"authorization"))
        if method not in ("GET", "HEAD"):
            raise Unsupported(f"{method} is not supported: this registry is a read-only mirror")
        from_peer = headers.get(MIRRORED_HEADER) == b"true"
        agent, namespace = headers.get(b"user-agent", b""), headers.get(b"oci-namespace", b"")
        is_memorable = len(path) + len(query) + len(namespace) <= _MEMORABLE
        parse = self._parse if is_memorable else self._parse_accepted
        one_source = agent.startswith(_ONE_SOURCE)
        request = parse(path, query, namespace, agent.startswith(_DOCKERD), from_peer, one_source)
        reference = request.reference
        asks_whether_moved = (
            reference.digest is None
            and from_this_machine
            and not from_peer
            and request.falls_back
            and agent.startswith(_RUNTIMES)
        )
        # Range is defined for GET (RFC 9110, 14.2); If-Range can't match (13.1.5), because no answer has a validator
        heeds_range = method == "GET" and request.kind is Kind.BLOB and b"if-range" not in headers
        header = headers.get(b"range") if heeds_range else None
        wanted = parse_ranges(header.decode("latin-1")) if header is not None else None
        # The runtime of this node asks for a tag in order to learn whether the tag has moved. Its own store can't tell,
        # because the runtime itself wrote the tag there. Peers and the upstream registry can. With the registry in the
        # path it has no upstream to ask. Another client gets the own tag, unless it is too old. A peer applies a limit
        # of its own.
        too_old = not from_peer and self._is_too_old(reference)
        own = None if asks_whether_moved or too_old else self.own(request, wanted)
        if own is not None:
            return own
        if from_peer:
            follower = _peer_id(headers.get(FOLLOW_HEADER, b""))
            if self._follow and follower and method == "GET" and reference.digest is not None:
                if wanted is not None and wanted.several:
                    raise TooManyRanges("a download in progress is sent one range at a time: ask for one range")
                return Growing(request, wanted, follower)
            raise unknown(request, f"this node does not have {reference}")
        return Elsewhere(request, wanted)

    def own(self, request: ContentRequest, wanted: Ranges | None = None) -> Own | None:
        """Return the plan for content that this node has, or None if it has not. Raises RangeInvalid."""
        content = self._find(request)
        if content is None:
            return None
        return Own(request, content, wanted, wanted.within(content.size) if wanted is not None else ())

    def _parse_accepted(
        self, path: bytes, query: bytes, namespace: bytes, from_dockerd: bool, from_peer: bool, one_source: bool
    ) -> ContentRequest:
        default = DEFAULT_REGISTRY if from_dockerd else None
        request = parse_content_path(
            path.decode("latin-1"), query.decode("latin-1"), namespace.decode("latin-1"), default
        )
        # a peer has other peers to ask
        request = replace(request, falls_back=from_peer or (request.falls_back and not one_source))
        # A digest without a registry is not filtered, because filters match full names. A digest from a peer is not
        # filtered either, because a peer that knows no registry names any, and the index has applied the filters.
        is_named = request.reference.digest is None or (request.reference.registry is not None and not from_peer)
        if is_named and not self._images.accepts(str(request.reference)):
            raise NameUnknown(
                f"{request.reference} is not mirrored here, by the registries and filters that are configured"
            )
        return request

    def _is_too_old(self, reference: Reference) -> bool:
        limited = self._tag_max_age.of(reference) is not None
        return limited and self._tag_max_age.refuses(reference, self._own_age(reference))

    def _find(self, request: ContentRequest) -> Descriptor | None:
        digest = request.reference.digest or self._store.resolve(str(request.reference))
        content = self._store.describe(digest) if digest is not None else None
        if content is not None and request.kind is Kind.MANIFEST and content.media_type not in MANIFESTS | INDEXES:
            return None
        return content


def _peer_id(value: bytes) -> str:
    """Return the peer id that a header field's value is, or "" if it is none."""
    text = value.decode("latin-1")
    try:
        peer_id_from_text(text)
    except RingError:
        return ""
    return text
