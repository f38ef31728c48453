"""Request paths of the distribution API: ``/v2/<name>/manifests/<reference>`` and ``/v2/<name>/blobs/<digest>``.

A mirror's client names the registry beside the path (``ns``). A client that knows no mirrors writes it into the path:
``<name>`` is ``ghcr.io/org/app`` then. Another way to name the registry belongs to :func:`full_name`.
"""

from __future__ import annotations

import re
import urllib.parse
from enum import Enum

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, ManifestUnknown, NameInvalid, NameUnknown, OCIError
from spegel_consul.oci.reference import Reference, check_registry, check_repository, check_tag, split_registry

MIRRORED_HEADER = b"x-spegel-mirrored"
"""Marks a peer's request, so that the peer answers from its own store only (Spegel's header)."""

FOLLOW_HEADER = b"x-spegel-follow"
"""In a peer's request beside :data:`MIRRORED_HEADER`: the peer would take the content from a download in progress too.

The value is the peer id of the node that asks, in base58. Spegel does not know the header."""

GROWING_HEADER = b"x-spegel-growing"
"""In the answer to such a request: this node is still downloading the content."""

LOAD_HEADER = b"x-spegel-load"
"""In an answer to a peer: the number of bodies that this node is sending to peers now. Spegel does not know it."""

BUSY_HEADER = b"x-spegel-busy"
"""In a refusal (503) of a peer's request: the seconds after which this node expects to have room. Spegel does not
know it, and takes the refusal for a failure."""

TAG_AGE_HEADER = b"x-spegel-tag-age"
"""In the answer to a request for a tag: the seconds since the tag was known to stand for this digest at its registry
(:mod:`spegel_consul.registry.mirror.tags.tag_ages`). Spegel does not know the header."""

TAG_CHECK_HEADER = b"x-spegel-tag-check"
"""In an answer with a tag that was checked at its registry: the result of the check
(:mod:`spegel_consul.registry.mirror.tags.upstream_tags`)."""

_CONTENT = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)\Z", re.DOTALL)


class Kind(Enum):
    """What a path asks for."""

    MANIFEST = "manifests"
    BLOB = "blobs"


@dataclass(frozen=True, slots=True)
class ContentRequest:
    """A parsed request for a manifest or a blob."""

    kind: Kind
    reference: Reference
    falls_back: bool = True
    """Whether the client asks another source for each part that is answered 404."""

    @property
    def promises(self) -> bool:
        """Whether the answer is a promise of all that the manifest names
        (:mod:`spegel_consul.registry.mirror.promises.whole_images`)."""
        return self.kind is Kind.MANIFEST and not self.falls_back

    @property
    def key(self) -> str:
        """The key under which the ring knows it."""
        return self.reference.key


def parse_content_path(
    raw_path: str, raw_query: str = "", namespace: str = "", default: str | None = None
) -> ContentRequest:
    """Parse the undecoded path and query of a request.

    ``namespace`` is the value of the header field OCI-Namespace, "" if there is none; ``default`` the registry that
    this client means when it names none, or None if there is no telling.
    Raises NameUnknown for another path, NameInvalid, TagInvalid or DigestInvalid for a malformed part, and
    ManifestUnknown for a tag of no known registry, which would else be some registry's image of the same path.
    """
    path, query = decoded(raw_path, raw_query)
    match = _CONTENT.match(path)
    if match is None:
        raise NameUnknown("expected /v2/<name>/manifests/<tag or digest> or /v2/<name>/blobs/<digest>")
    registry, repository, in_path = full_name(match["name"], query.get("ns", []), namespace, default)
    kind = Kind(match["kind"])
    text = match["reference"]
    if kind is Kind.BLOB or ":" in text:
        return ContentRequest(kind, Reference(registry, repository, digest=Digest(text)), not in_path)
    tag = check_tag(text)
    if registry is None:
        raise ManifestUnknown(
            f"the registry of {repository}:{tag} was not named: add it to the URL, such as ?ns=docker.io, "
            "or send the header OCI-Namespace: docker.io, or put it before the repository, such as "
            f"docker.io/{repository}; a digest needs none of them"
        )
    return ContentRequest(kind, Reference(registry, repository, tag=tag), not in_path)


def decoded(raw_path: str, raw_query: str) -> tuple[str, dict[str, list[str]]]:
    """The decoded path and the query's values by name. Raises NameInvalid."""
    try:
        path = urllib.parse.unquote(raw_path, errors="strict")
        query = urllib.parse.parse_qs(raw_query, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise NameInvalid("the path or query is not valid percent-encoded UTF-8") from None
    return path, query


def full_name(
    name: str, in_query: list[str], in_header: str, default: str | None = None
) -> tuple[str | None, str, bool]:
    """The registry that a client means, or None; the repository; and whether the registry stood in ``name``.

    ``ns`` counts first (distribution-spec, "Registry Proxying"; containerd core/remotes/docker sends it, image by
    image), then the header, which may be the same for all images, since ``hosts.toml`` can set it. A registry in
    the path counts before ``default``, because the names of that registry's users have no dots; ``localhost`` and
    ``host_5443`` could be such users, so they are registries only if there is no default.
    Raises NameInvalid, also for several registries in the query.
    """
    named = {check_registry(text) for text in in_query if text}
    if len(named) > 1:
        raise NameInvalid(f"ns is given {len(named)} times with different registries: give it once")
    if named:
        return named.pop(), check_repository(name), False
    if in_header:
        return check_registry(in_header), check_repository(name), False
    first = name.partition("/")[0]
    split = split_registry(name) if default is None or "." in first or ":" in first else None
    if split is None:
        return default, check_repository(name), False
    registry, repository = split
    return registry, check_repository(repository), True


def unknown(request: ContentRequest, message: str) -> OCIError:
    """The error that says that nobody has what is asked for."""
    return (ManifestUnknown if request.kind is Kind.MANIFEST else BlobUnknown)(message)
