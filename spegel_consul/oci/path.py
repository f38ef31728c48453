"""Request paths of the distribution API: ``/v2/<name>/manifests/<reference>`` and ``/v2/<name>/blobs/<digest>``."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from enum import Enum

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import NameInvalid, NameUnknown
from spegel_consul.oci.reference import DEFAULT_REGISTRY, Reference, check_registry, check_repository, check_tag

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

    @property
    def key(self) -> str:
        """The key under which the ring knows it."""
        return self.reference.key


def parse_content_path(raw_path: str, raw_query: str = "") -> ContentRequest:
    """Parse the undecoded path and query of a request.

    ``ns`` in the query is the registry that the client meant (containerd core/remotes/docker); without it
    the registry is docker.io, because the one client that sends none, dockerd without the containerd image
    store, mirrors nothing else.
    Raises NameUnknown for another path, NameInvalid, TagInvalid or DigestInvalid for a malformed part.
    """
    try:
        path = urllib.parse.unquote(raw_path, errors="strict")
        query = urllib.parse.parse_qs(raw_query, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise NameInvalid("the path or query is not valid percent-encoded UTF-8") from None
    match = _CONTENT.match(path)
    if match is None:
        raise NameUnknown("expected /v2/<name>/manifests/<tag or digest> or /v2/<name>/blobs/<digest>")
    registry = check_registry(query["ns"][0]) if query.get("ns", [""])[0] else DEFAULT_REGISTRY
    repository = check_repository(match["name"])
    kind = Kind(match["kind"])
    text = match["reference"]
    if kind is Kind.BLOB or ":" in text:
        return ContentRequest(kind, Reference(registry, repository, digest=Digest(text)))
    return ContentRequest(kind, Reference(registry, repository, tag=check_tag(text)))
