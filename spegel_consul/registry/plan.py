# What shall be done with this request?
#
# Two paths lead to an answer, the fast path and the ASGI path, and they must never disagree.  So
# both ask here, and here nothing waits: the request's text and the index in memory are all that is needed.

"""The decision about a request for content, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.errors import NameUnknown, Unauthorized, Unsupported
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import INDEXES, MANIFESTS
from spegel_consul.oci.path import MIRRORED_HEADER, ContentRequest, Kind, parse_content_path, unknown
from spegel_consul.oci.ranges import ByteRange, Ranges, parse_ranges
from spegel_consul.oci.reference import DEFAULT_REGISTRY
from spegel_consul.store import Store

_DOCKERD = b"docker/"
"""How the User-Agent of dockerd begins. Without the containerd image store it names no registry, and has mirrors for
docker.io only (moby distribution/registry.go)."""

_RUNTIMES = (b"containerd/", _DOCKERD)
_REMEMBERED = 2048
_MEMORABLE = 512  # bytes of path, query and namespace; what is longer is nobody's daily request


@dataclass(frozen=True, slots=True)
class Own:
    """Send content that this node has: all of it, or ``spans`` of it, which are what ``wanted`` is of this content."""

    request: ContentRequest
    content: Descriptor
    wanted: Ranges | None = None
    spans: tuple[ByteRange, ...] = ()

    @property
    def partial(self) -> bool:
        return bool(self.spans)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Look for it at peers: for all of it, or what ``wanted`` says."""

    request: ContentRequest
    wanted: Ranges | None = None

    @property
    def range_header(self) -> str | None:
        """The Range header for a peer, if not all is wanted."""
        return None if self.wanted is None else self.wanted.header


class Planner:
    """Decides from what ``store`` has and ``images`` accepts; with ``credentials`` only those who show them count."""

    def __init__(self, store: Store, images: ImageFilter, credentials: Credentials | None = None) -> None:
        self._store = store
        self._images = images
        self._credentials = credentials
        # runtimes ask for the same few paths again and again, and parsing one costs more than all the rest
        self._parse = lru_cache(_REMEMBERED)(self._parse_accepted)

    @property
    def version(self) -> int:
        """Another number whenever :meth:`plan` may say something else than before."""
        return self._store.version if self._credentials is None else self._store.version + self._credentials.version

    def check(self, authorization: bytes | None) -> None:
        """Raises Unauthorized if credentials are asked for and the field's value is none of them."""
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
    ) -> Own | Elsewhere:
        """What to do. ``path`` and ``query`` are undecoded, the names of ``headers`` in lower case.

        The answer to the same bytes must be the same, so nothing of a request counts but these and where it came from.
        Raises the OCIError to answer with.
        """
        self.check(headers.get(b"authorization"))
        if method not in ("GET", "HEAD"):
            raise Unsupported(f"{method} is not supported: this registry is a read-only mirror")
        from_peer = headers.get(MIRRORED_HEADER) == b"true"
        agent, namespace = headers.get(b"user-agent", b""), headers.get(b"oci-namespace", b"")
        is_memorable = len(path) + len(query) + len(namespace) <= _MEMORABLE
        parse = self._parse if is_memorable else self._parse_accepted
        request = parse(path, query, namespace, agent.startswith(_DOCKERD), from_peer)
        reference = request.reference
        asks_whether_moved = (
            reference.digest is None and from_this_machine and not from_peer and agent.startswith(_RUNTIMES)
        )
        # Range is defined for GET (RFC 9110, 14.2); no answer of ours has a validator, so If-Range can't match (13.1.5)
        heeds_range = method == "GET" and request.kind is Kind.BLOB and b"if-range" not in headers
        header = headers.get(b"range") if heeds_range else None
        wanted = parse_ranges(header.decode("latin-1")) if header is not None else None
        # The runtime of this very node asks for a tag because it wants to know whether the tag has moved; an
        # answer from its own store could only ever say no.  Peers and the upstream registry can say more.
        content = None if asks_whether_moved else self._find(request)
        if content is not None:
            return Own(request, content, wanted, wanted.within(content.size) if wanted is not None else ())
        if from_peer:
            raise unknown(request, f"this node does not have {reference}")
        return Elsewhere(request, wanted)

    def _parse_accepted(
        self, path: bytes, query: bytes, namespace: bytes, from_dockerd: bool, from_peer: bool
    ) -> ContentRequest:
        default = DEFAULT_REGISTRY if from_dockerd else None
        request = parse_content_path(
            path.decode("latin-1"), query.decode("latin-1"), namespace.decode("latin-1"), default
        )
        # Filters are about full names, and a digest without a registry is none.  A peer may have named any registry
        # for want of one; the index has judged already what of the own store it may have.
        is_named = request.reference.digest is None or (request.reference.registry is not None and not from_peer)
        if is_named and not self._images.accepts(str(request.reference)):
            raise NameUnknown(
                f"{request.reference} is not mirrored here, by the registries and filters that are configured"
            )
        return request

    def _find(self, request: ContentRequest) -> Descriptor | None:
        digest = request.reference.digest or self._store.resolve(str(request.reference))
        content = self._store.describe(digest) if digest is not None else None
        if content is not None and request.kind is Kind.MANIFEST and content.media_type not in MANIFESTS | INDEXES:
            return None
        return content
