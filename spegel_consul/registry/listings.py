"""Lists of what this node's store holds: repositories, tags of a repository, referrers of a manifest.

The paths are ``/v2/_catalog``, ``/v2/<name>/tags/list`` and ``/v2/<name>/referrers/<digest>`` (distribution-spec,
"Content Discovery"). A list is about this node alone and not about the upstream registry. So a request that names a
registry beside the path (``ns``), as a runtime does with its mirror, is answered 404, and the runtime asks upstream.
The store's index has applied the filters already.

The bytes of a manifest say what its subject is. Each is read once, and its subject is remembered.

A new list of own content belongs here.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, PageInvalid, Unsupported
from spegel_consul.oci.media import INDEXES, MANIFESTS, MAX_MANIFEST_SIZE, OCI_INDEX, manifest_media_type
from spegel_consul.oci.path import decoded, full_name
from spegel_consul.oci.reference import Reference
from spegel_consul.store import Store

MOST = 1000
"""Entries of one answer; a link leads to the next ones."""

_PATH = re.compile(r"/v2/(?:_catalog|(?P<name>.+)/(?:tags/list|referrers/(?P<subject>[^/]+)))\Z", re.DOTALL)
_REMEMBERED = 16384  # manifests whose subject is remembered
_READ = 5.0  # seconds that reading manifests may take in one request


@dataclass(frozen=True, slots=True)
class Listing:
    """The answer; ``headers`` besides the content's type and length."""

    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: ``number`` entries behind ``last``."""

    number: int = MOST
    last: str = ""

    @classmethod
    def parse(cls, query: Mapping[str, list[str]]) -> Page:
        """From ``n`` and ``last`` of the query; ``n`` beyond 1000 is 1000. Raises PageInvalid."""
        text = query.get("n", [str(MOST)])[-1]
        if not (text.isascii() and text.isdigit()):
            raise PageInvalid(f"n={text[:20]} is not valid: expected a number of entries")
        number = MOST if len(text) > len(str(MOST)) else min(int(text), MOST)
        return cls(number, query.get("last", [""])[-1])

    def of(self, names: Iterable[str]) -> tuple[list[str], str | None]:
        """The names of this page in order, and the ``last`` of the next page if there is one.

        The order is that of the specification, without regard to case.
        """
        behind = sorted((each for each in set(names) if not self.last or _order(each) > _order(self.last)), key=_order)
        found = behind[: self.number]
        return found, found[-1] if found and len(behind) > len(found) else None

    def link(self, path: str, last: str | None, **others: str) -> tuple[tuple[bytes, bytes], ...]:
        """The Link header field (RFC 8288) to the page behind ``last``, or nothing if there is none."""
        if last is None:
            return ()
        query = urllib.parse.urlencode({"n": self.number, "last": last, **others})
        target = f"{urllib.parse.quote(path, safe='/:')}?{query}"
        return ((b"link", f'<{target}>; rel="next"'.encode()),)


def _order(name: str) -> tuple[str, str]:
    return name.lower(), name


def is_listing(raw_path: bytes) -> bool:
    """Whether the undecoded path is that of a list."""
    return _PATH.match(urllib.parse.unquote(raw_path.decode("latin-1"))) is not None


class Listings:
    """The lists of what ``store`` holds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subjects: BoundedDict[Digest, str] = BoundedDict(_REMEMBERED)  # "" for a manifest without a subject
        self._reading = trio.Lock()

    async def answer(self, method: str, path: bytes, query: bytes, headers: Mapping[bytes, bytes]) -> Listing:
        """The list at a path of :func:`is_listing`. Raises the OCIError to answer with."""
        if method not in ("GET", "HEAD"):
            raise Unsupported(f"{method} is not supported: this registry is a read-only mirror")
        text, args = decoded(path.decode("latin-1"), query.decode("latin-1"))
        match = _PATH.match(text)
        if match is None:
            raise NameUnknown("expected /v2/_catalog, /v2/<name>/tags/list or /v2/<name>/referrers/<digest>")
        if any(args.get("ns", [])) or headers.get(b"oci-namespace"):
            raise NameUnknown("a mirror has no lists of another registry: ask the registry itself")
        page, name = Page.parse(args), match["name"]
        if name is None:
            return self._catalog(page)
        registry, repository, _ = full_name(name, [], "")
        if match["subject"] is None:
            return self._tags(page, name, registry, repository)
        return await self._referrers(page, name, Digest(match["subject"]), args.get("artifactType", [""])[-1])

    def _named(self) -> Iterator[Reference]:
        for image in self._store.images():
            reference = Reference.parse_full(image.name)
            if reference is not None and reference.tag is not None:
                yield reference

    def _catalog(self, page: Page) -> Listing:
        found, last = page.of(_in_path(each) for each in self._named())
        return _json({"repositories": found}, page.link("/v2/_catalog", last))

    def _tags(self, page: Page, name: str, registry: str | None, repository: str) -> Listing:
        images = [each for each in self._named() if each.repository == repository and registry in (None, each.registry)]
        registries = sorted({each.registry or "" for each in images})
        if not images:
            raise NameUnknown(f"this node has no tag of {name}")
        if len(registries) > 1:
            raise NameUnknown(f"{name} is an image of {', '.join(registries)}: put one of them before it")
        found, last = page.of(each.tag or "" for each in images)
        return _json({"name": name, "tags": found}, page.link(f"/v2/{name}/tags/list", last))

    async def _referrers(self, page: Page, name: str, subject: Digest, artifact_type: str) -> Listing:
        if self._store.describe(subject) is None:
            raise ManifestUnknown(f"this node does not have {subject}, and knows none of its referrers")
        descriptors: dict[str, dict[str, object]] = {}
        with trio.move_on_after(_READ) as reading:
            async with self._reading:
                async with aclosing(self._with_subject(subject)) as found_manifests:
                    async for digest, manifest in found_manifests:
                        descriptor = _described(digest, manifest)
                        if artifact_type in ("", descriptor["artifactType"]):
                            descriptors[digest] = descriptor
        if reading.cancelled_caught:
            raise ManifestUnknown(f"the manifests of this node could not be read within {_READ:g} s")
        found, last = page.of(descriptors)
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptors[each] for each in found]}
        others = {"artifactType": artifact_type} if artifact_type else {}
        headers = page.link(f"/v2/{name}/referrers/{subject}", last, **others)
        if artifact_type:
            headers += ((b"oci-filters-applied", b"artifactType"),)
        return _json(index, headers, OCI_INDEX)

    async def _with_subject(self, subject: Digest) -> AsyncGenerator[tuple[Digest, bytes], None]:
        """Yield the manifests whose subject is ``subject``, with their bytes."""
        keys = self._store.keys()
        for lost in self._subjects.keys() - keys:
            del self._subjects[lost]
        for key in keys:
            content = self._store.describe(key) if isinstance(key, Digest) else None
            if content is None or content.media_type not in MANIFESTS | INDEXES or content.size > MAX_MANIFEST_SIZE:
                continue
            digest = content.digest
            if self._subjects.get(digest, subject) != subject:
                continue
            with suppress(BlobUnknown):
                async with self._store.open(digest) as blob:
                    body = b"".join([piece async for piece in blob.chunks(0, content.size)])
                self._subjects[digest] = _subject_of(body)
                if self._subjects[digest] == subject:
                    yield digest, body


def _in_path(reference: Reference) -> str:
    """The name under which clients find the repository here; a port is written as a path allows it."""
    return f"{(reference.registry or '').replace(':', '_')}/{reference.repository}"


def _subject_of(manifest: bytes) -> str:
    """The digest of the manifest's subject, or "" if it has none."""
    with suppress(ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return Digest(json.loads(manifest)["subject"]["digest"])
    return ""


def _described(digest: Digest, manifest: bytes) -> dict[str, object]:
    """The descriptor of a referrer (distribution-spec, "Listing Referrers")."""
    document = json.loads(manifest)
    config = document.get("config")
    configured = config.get("mediaType") if isinstance(config, dict) else None
    descriptor: dict[str, object] = {
        "mediaType": manifest_media_type(manifest),
        "digest": digest,
        "size": len(manifest),
        "artifactType": document.get("artifactType") or configured or "",
    }
    if isinstance(document.get("annotations"), dict):
        descriptor["annotations"] = document["annotations"]
    return descriptor


def _json(
    document: object, headers: tuple[tuple[bytes, bytes], ...] = (), content_type: str = "application/json"
) -> Listing:
    return Listing(content_type, json.dumps(document).encode(), headers)
