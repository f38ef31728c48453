"""Whether an image can be given whole: asked before a manifest is sent to a client that does not fall back.

containerd and dockerd ask another source for each blob that a mirror lacks. What is built on containers/image (podman,
skopeo, Buildah, CRI-O) chooses one source by the first manifest that it gets, and fails the pull if that source lacks
anything afterwards. A client that names the registry in the path has no other source at all. So for these a manifest is
sent only if each part of the image is known to be in the own store or at a peer that has just confirmed it; else the
answer is 404 at once, and the client goes upstream.

The first manifest may be an index. The client's platform is not in its requests, so the platform of this machine is
taken for it: the image of that platform must be whole. Of several variants the best one that this machine runs counts,
because neighbours have pulled no other. If the index has none, the answer is 404.

What was found is a promise for some time. It is not asked for again with the next manifest of the same pull. If a part
can't be sent later, the log says which one, and why. A peer that fails meanwhile is replaced as in any other fetch.

:func:`required` decides without I/O. A new rule about what an image needs to be whole belongs there; the choice of the
clients is made in :mod:`spegel_consul.registry.plan`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, OCIError
from spegel_consul.oci.media import MAX_MANIFEST_SIZE, entries
from spegel_consul.oci.path import ContentRequest, Kind, unknown
from spegel_consul.oci.platforms import OS, this_architecture, this_variants
from spegel_consul.oci.reference import Reference
from spegel_consul.registry.mirror.fetch import race
from spegel_consul.registry.mirror.lookup_limit import LookupLimit
from spegel_consul.registry.mirror.mirror_peers import MirrorPeers
from spegel_consul.registry.mirror.trace import Trace, TraceHeaders, Traces
from spegel_consul.store import Store
from spegel_consul.store.manifest_walk import ManifestInvalid, parse

log = structlog.get_logger(__name__)

WITHIN = 3.0
"""Seconds that all questions about one manifest may take together."""

_AT_ONCE = 16  # questions about one manifest; a client on another machine may have 64 lookups in flight
_MOST = 512  # parts of one image that are asked for; no real image has as many
_CONFIRMED_FOR = 10.0  # seconds in which a part is not asked for again; the manifests of one pull come within them
_PROMISED_FOR = 600.0  # seconds after which nobody is surprised if a part is gone
_MOST_PROMISED = 8192


@dataclass(frozen=True, slots=True)
class Required:
    """What must be there if a manifest is sent: parts of an index with all that they require, and blobs."""

    manifests: tuple[Digest, ...] = ()
    blobs: tuple[Digest, ...] = ()


def required(manifest: bytes, architecture: str, variants: Sequence[str] = ("",)) -> Required:
    """What ``manifest`` requires on Linux machines of this architecture, such as ``amd64``.

    ``variants``: those of the architecture that the machines run, the preferred one first.
    Layers that no registry serves are not required. Raises ManifestInvalid for other content, for an index without an
    image of the platform, and for more than 512 parts.
    """
    document = parse(manifest)
    if len(document.needed) > _MOST:
        raise ManifestInvalid(f"it has {len(document.needed)} parts, more than {_MOST}")
    if not document.is_index:
        return Required(blobs=tuple(dict.fromkeys(each.digest for each in document.needed)))
    known = {each.digest for each in document.needed}
    fitting: dict[str, list[Digest]] = {}  # by variant
    unsaid: list[Digest] = []
    for entry in entries(json.loads(manifest), "manifests") or ():
        if not isinstance(entry, dict) or entry.get("digest") not in known:
            continue
        platform = entry.get("platform")
        if not isinstance(platform, dict):
            unsaid.append(Digest(entry["digest"]))
        elif (platform.get("os"), platform.get("architecture")) == (OS, architecture):
            fitting.setdefault(str(platform.get("variant") or ""), []).append(Digest(entry["digest"]))
    best = next((fitting[each] for each in variants if each in fitting), None)
    found = best or [digest for each in fitting.values() for digest in each] or unsaid
    if not found:
        raise ManifestInvalid(f"it has no image for {OS}/{architecture}")
    return Required(manifests=tuple(dict.fromkeys(found)))


@dataclass(frozen=True, slots=True)
class _Promise:
    image: str
    at: float


class _Asker(NamedTuple):
    client: str
    trace_headers: TraceHeaders


class WholeImages:
    """Finds out whether the parts of images are in ``store`` or at ``peers``, and remembers what was promised."""

    def __init__(self, peers: MirrorPeers, traces: Traces, lookups: LookupLimit, store: Store | None) -> None:
        self._peers = peers
        self._traces = traces
        self._lookups = lookups
        self._store = store
        self._promises: BoundedDict[Digest, _Promise] = BoundedDict(_MOST_PROMISED)

    async def check(
        self, request: ContentRequest, manifest: bytes, client: str, trace_headers: TraceHeaders = ()
    ) -> None:
        """Return if all parts that ``manifest``, the answer to ``request``, requires are known to be there.

        ``client``: the address for which lookups are counted, "" for a client of this machine. Raises ManifestUnknown
        with the reason if one is not, or if the answers take longer than three seconds.
        """
        asker = _Asker(client, trace_headers)
        found: list[Digest] = []
        reason: str | None = f"the nodes that have it did not confirm it within {WITHIN:g} s"
        with trio.move_on_after(WITHIN):
            reason = await self._lacking(request.reference, manifest, asker, found, inner=False)
        if reason is not None:
            raise unknown(
                request,
                f"{request.reference} can't be given whole, and this client asks nobody else for parts: {reason}",
            )
        now = trio.current_time()
        self._promises.drop_oldest(lambda promise: now - promise.at > _PROMISED_FOR)
        for digest in found:
            self._promises[digest] = _Promise(str(request.reference), now)

    def broken(self, request: ContentRequest, reason: str) -> None:
        """Log that content can't be sent, if it was promised to a client that does not fall back."""
        digest = request.reference.digest
        promise = self._promises.get(digest) if digest is not None and not request.falls_back else None
        if promise is not None and trio.current_time() - promise.at <= _PROMISED_FOR:
            log.warning("a part of a promised image is gone", image=promise.image, digest=digest, error=reason)

    async def _lacking(
        self, image: Reference, manifest: bytes, asker: _Asker, found: list[Digest], *, inner: bool
    ) -> str | None:
        """Return why the image is not whole, or None; add to ``found`` what was asked for and is there."""
        try:
            needs = required(manifest, this_architecture(), this_variants())
        except ManifestInvalid as exc:
            return str(exc)
        if inner and needs.manifests:
            return "an index in an index is not followed"
        reasons: list[str] = []
        limiter = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:

            async def one(kind: Kind, digest: Digest) -> None:
                # as of a client that does not fall back, because a question is no download for others to follow
                reference = Reference(image.registry, image.repository, digest=digest)
                request = ContentRequest(kind, reference, falls_back=False)
                async with limiter:
                    try:
                        reason = await (self._blob if kind is Kind.BLOB else self._manifest)(request, asker, found)
                    except OCIError as exc:
                        reason = exc.message
                if reason is not None:
                    reasons.append(reason)
                    nursery.cancel_scope.cancel()  # one that is missing is enough

            for digest in needs.manifests:
                nursery.start_soon(one, Kind.MANIFEST, digest)
            for digest in needs.blobs:
                if not self._is_confirmed(digest):
                    nursery.start_soon(one, Kind.BLOB, digest)
        return reasons[0] if reasons else None

    def _is_confirmed(self, digest: Digest) -> bool:
        if self._store is not None and self._store.describe(digest) is not None:
            return True
        promise = self._promises.get(digest)
        return promise is not None and trio.current_time() - promise.at <= _CONFIRMED_FOR

    async def _blob(self, request: ContentRequest, asker: _Asker, found: list[Digest]) -> None:
        """Ask peers whether they have a blob. Raises BlobUnknown if none has it."""
        await self._ask(request, "HEAD", asker)
        assert request.reference.digest is not None
        found.append(request.reference.digest)

    async def _manifest(self, request: ContentRequest, asker: _Asker, found: list[Digest]) -> str | None:
        """Return why the image of an index is not whole, or None. Raises ManifestUnknown if no peer has it."""
        digest = request.reference.digest
        assert digest is not None
        body = await self._own(digest)
        if body is None:
            body = await self._ask(request, "GET", asker)
        return await self._lacking(request.reference, body, asker, found, inner=True)

    async def _own(self, digest: Digest) -> bytes | None:
        """Return a manifest of the own store, or None."""
        content = self._store.describe(digest) if self._store is not None else None
        if self._store is None or content is None or content.size > MAX_MANIFEST_SIZE:
            return None
        with suppress(BlobUnknown):
            async with self._store.open(digest) as blob:
                return b"".join([piece async for piece in blob.chunks(0, content.size)])
        return None

    async def _ask(self, request: ContentRequest, method: str, asker: _Asker) -> bytes:
        """Return the body of the first acceptable answer, b"" for HEAD. Raises the OCIError if there is none."""
        # the trace is not shown, because the request that is answered is another one
        trace = Trace(self._traces, 0, request.reference, request.key, request.kind.value, method)
        trace.client, trace.trace_headers = asker
        async with race(self._peers, request, method, trace) as fetch:
            with self._lookups.one(asker.client, request):
                answer = await fetch.first(None)
            answer.discard()
            return answer.body if isinstance(answer.body, bytes) else b""
