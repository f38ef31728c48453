"""A trial pull of an image through a mirror, which keeps nothing.

It requests the same content as a runtime: manifests, configuration and layers of one platform, each hashed as it
arrives. It uses the client for peers, the fastest in this program. Chunks that take longer to hash than to hand over
are hashed in a thread, because a measurement must not delay other pulls.

A rule about the order of requests or their verification belongs here; limits of measurements belong to ``questions``.
"""

from __future__ import annotations

import json
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import trio

from spegel_consul.http.peer_client import PeerClient, PeerLimits, PeerResponse
from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.oci.media import INDEXES, MANIFESTS, MAX_MANIFEST_SIZE, entries
from spegel_consul.oci.platforms import this_platform
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import PeerError
from spegel_consul.web.node_views import Document

PARALLEL = 3
"""Number of concurrent blobs, as in runtimes."""

_ACCEPT = ", ".join(sorted(MANIFESTS | INDEXES))
_LIMITS = PeerLimits(connect=3.0, first_byte=15.0, stall=15.0)
_MOST_LAYERS = 1000
_HASH_ON_LOOP = 32 << 10  # bytes that are hashed in 20 µs, less than a thread costs
_threads = trio.CapacityLimiter(PARALLEL)


class PullFailed(Exception):
    """The image can't be pulled; the message is one line that says why. ``missing``: no node has it."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(slots=True)
class Piece:
    """One manifest or blob; ``what``: index, manifest, config or layer N. Times are seconds since the pull began."""

    what: str
    digest: str
    size: int
    started: float
    first_byte: float = 0.0
    done: float = 0.0
    source: str = ""
    source_node: str | None = None
    received: int = 0

    def to_json(self) -> Document:
        took = self.done - self.started if self.done else 0.0
        return {
            "what": self.what,
            "digest": self.digest,
            "size": self.size,
            "started_ms": round(self.started * 1000, 3),
            "first_byte_ms": round(self.first_byte * 1000, 3),
            "done_ms": round(self.done * 1000, 3) if self.done else None,
            "bytes_per_second": round(self.size / took) if took > 0 else None,
            "source": self.source,
            "source_node": self.source_node,
            "received": self.received,
            "verified": bool(self.done),
        }


@dataclass(slots=True)
class Puller:
    """Pulls from the registry at ``address``; use as ``async with``.

    ``names``: names of nodes by their registries. ``progress`` is called when a piece begins, grows and ends.
    """

    address: tuple[str, int]
    names: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[Piece], None] = lambda piece: None
    platform: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    tls: PeerTls | None = None
    _client: PeerClient = field(init=False)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self._client = PeerClient(_LIMITS, self.tls)

    async def __aenter__(self) -> Puller:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    async def pull(self, reference: Reference) -> None:
        """Pull an image and call ``progress`` with its pieces. Raises PullFailed."""
        self._began = trio.current_time()
        base = f"/v2/{reference.repository}"
        namespace = urllib.parse.quote(reference.namespace, safe="")
        manifest = await self._manifest(base, namespace, reference.digest or reference.tag or "", str(reference))
        if isinstance(manifest.get("manifests"), list):
            chosen = _choose(manifest["manifests"], self.platform)
            manifest = await self._manifest(base, namespace, chosen, str(reference))
        waiting = deque(_parts(manifest))
        failures: list[PullFailed] = []

        async def fetch() -> None:
            try:
                while waiting:
                    await self._blob(base, namespace, *waiting.popleft())
            except PullFailed as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(PARALLEL):
                nursery.start_soon(fetch)
        if failures:
            raise failures[0]

    async def _manifest(self, base: str, namespace: str, name: str, shown: str) -> dict[str, Any]:
        target = f"{base}/manifests/{urllib.parse.quote(name, safe=':')}?ns={namespace}"
        started = self._now()
        response = await self._get(target, shown, (("accept", _ACCEPT),))
        try:
            digest = Digest(response.header(b"docker-content-digest") or name)
        except DigestInvalid:
            response.discard()
            raise PullFailed(f"the mirror's answer for {shown} has no Docker-Content-Digest") from None
        piece = Piece("manifest", digest, int(response.header(b"content-length") or 0), started, self._now())
        if piece.size > MAX_MANIFEST_SIZE:
            response.discard()
            raise PullFailed(f"the manifest of {shown} is {piece.size} bytes long, more than {MAX_MANIFEST_SIZE}")
        body = bytearray()
        await self._read(response, piece, digest, body)
        try:
            document = json.loads(body)
            piece.what = "index" if isinstance(document.get("manifests"), list) else "manifest"
        except (ValueError, AttributeError, RecursionError):
            raise PullFailed(f"{digest} is no manifest") from None
        return dict(document)

    async def _blob(self, base: str, namespace: str, what: str, digest: Digest, size: int) -> None:
        piece = Piece(what, digest, size, self._now())
        self.progress(piece)
        response = await self._get(f"{base}/blobs/{digest}?ns={namespace}", f"{what} {digest}", ())
        piece.first_byte = self._now()
        await self._read(response, piece, digest, None)

    async def _get(self, target: str, what: str, headers: tuple[tuple[str, str], ...]) -> PeerResponse:
        try:
            response = await self._client.request(self.address, "GET", target, (*self.headers, *headers))
        except PeerError as exc:
            raise PullFailed(f"the mirror failed: {exc}") from None
        if response.status != 200:
            response.discard()
            if response.status == 404:
                raise PullFailed(f"no node has {what}", missing=True)
            raise PullFailed(f"the mirror answered {response.status} for {what}")
        return response

    async def _read(self, response: PeerResponse, piece: Piece, digest: Digest, keep: bytearray | None) -> None:
        piece.source = response.header(b"x-spegel-served-by") or "own"
        piece.source_node = self.names.get(piece.source)
        hasher = digest.hasher()
        try:
            async with aclosing(response.chunks()) as chunks:
                async for chunk in chunks:
                    if len(chunk) <= _HASH_ON_LOOP:
                        hasher.update(chunk)
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.to_thread.run_sync(hasher.update, chunk, limiter=_threads)
                    if keep is not None:
                        keep += chunk
                        if len(keep) > MAX_MANIFEST_SIZE:
                            raise PullFailed(f"{piece.what} {digest} is longer than {MAX_MANIFEST_SIZE} bytes")
                    piece.received += len(chunk)
                    self.progress(piece)
        except PeerError as exc:
            raise PullFailed(f"{piece.what} {digest} broke off at byte {piece.received}: {exc}") from None
        finally:
            response.discard()
        if hasher.hexdigest() != digest.encoded:
            raise PullFailed(f"{piece.what} {digest} came with wrong bytes")
        piece.size = piece.received
        piece.done = self._now()
        self.progress(piece)

    def _now(self) -> float:
        return trio.current_time() - self._began


def _choose(manifests: list[Any], wanted: str) -> Digest:
    """The digest of the manifest for a platform. Raises PullFailed."""
    wanted = wanted or this_platform()
    found = []
    for entry in manifests:
        try:
            platform = entry.get("platform") or {}
            name = "/".join(str(platform[part]) for part in ("os", "architecture", "variant") if platform.get(part))
            digest = Digest(entry["digest"])
        except (AttributeError, KeyError, TypeError, DigestInvalid):
            continue
        if name == wanted or name.startswith(wanted + "/") or (not name and len(manifests) == 1):
            return digest
        found.append(name or "unknown")
    raise PullFailed(f"the image has no {wanted}, only {', '.join(found[:10]) or 'nothing'}")


def _parts(manifest: dict[str, Any]) -> list[tuple[str, Digest, int]]:
    """The configuration and layers of a manifest, each digest once. Raises PullFailed."""
    found: dict[Digest, tuple[str, Digest, int]] = {}
    broken = PullFailed("the manifest does not name a configuration and layers")
    layers: list[Any] | None = entries(manifest, "layers")
    if layers is None:
        raise broken
    try:
        for what, part in (
            ("config", manifest["config"]),
            *((f"layer {n + 1}", part) for n, part in enumerate(layers[:_MOST_LAYERS])),
        ):
            digest = Digest(part["digest"])
            found.setdefault(digest, (what, digest, int(part["size"])))
    except (KeyError, TypeError, ValueError, OverflowError, DigestInvalid):
        raise broken from None
    return list(found.values())
