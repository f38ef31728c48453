"""Image names: ``registry/repository:tag`` and ``registry/repository@digest``.

Two grammars apply: that of the distribution specification for repositories and tags, and that of the reference library
for the registry in front of them.  Matching is on decoded text and anchored at both ends, so an accepted name contains
no "..", no percent sign, no upper case and no empty path segment.

A client without settings for mirrors writes the registry of an image into the path: ``ghcr.io/org/app`` on this
node's address.  The rule is the reference library's, so the first part with a dot, with a port, or ``localhost`` is a
registry (:func:`split_registry`).  A repository on Docker Hub begins with a user's name, which has no dot.

A registry has one name, because names are compared and are keys of the ring.  Host names are the same in any case
(RFC 4343), and Docker Hub has three, because clients write the one that they connect to.

A new rule about the form or the equality of names belongs here.
"""

from __future__ import annotations

import re

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import NameInvalid, OCIError, TagInvalid

DEFAULT_REGISTRY = "docker.io"
MAX_NAME_LENGTH = 255
_MAX_PORT = 65535

_ALIASES = {"index.docker.io": DEFAULT_REGISTRY, "registry-1.docker.io": DEFAULT_REGISTRY}

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?\Z")


def check_repository(name: str) -> str:
    """``name`` itself. Raises NameInvalid (distribution-spec, "Pulling manifests": ``<name>``)."""
    if len(name) > MAX_NAME_LENGTH or not _REPOSITORY.match(name):
        raise NameInvalid(f"repository name {name[:100]!r} is not valid: lower-case letters, digits, . _ - and /")
    return name


def check_tag(tag: str) -> str:
    """``tag`` itself. Raises TagInvalid (distribution-spec: at most 128 characters)."""
    if not _TAG.match(tag):
        raise TagInvalid(f"tag {tag[:130]!r} is not valid: up to 128 letters, digits, _ . and -")
    return tag


def registry_name(host: str) -> str:
    """The one name of the registry ``host``, which is not checked: in lower case, ``docker.io`` for its aliases.

    Only its capitals tell a host like ``Registry`` from the first part of a repository, so it keeps them. What is not
    ASCII is no host, though lower case may make it look like one (K, the sign of kelvin).
    """
    name = host.lower() if host.isascii() else host
    return _ALIASES.get(name, name if _is_host(name) else host)


def _is_host(first: str) -> bool:
    """Whether the first part of an image's name is a registry (distribution/reference, splitDockerDomain)."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def check_registry(host: str) -> str:
    """The one name of the registry ``host``, a host name or address with an optional port. Raises NameInvalid."""
    if len(host) > MAX_NAME_LENGTH or not _REGISTRY.match(host):
        raise NameInvalid(f"registry {host[:100]!r} is not valid: expected host or host:port")
    return registry_name(host)


def split_registry(name: str) -> tuple[str, str] | None:
    """The registry in front of ``name`` and the repository behind it, which is not checked; None if there is none.

    ``host_5443`` is ``host:5443`` as well, because the name of a repository has no colon. A repository of Docker Hub
    without its user is the user ``library``'s. Raises NameInvalid for a registry that is malformed, has capitals, or a
    port outside of 1 to 65535.
    """
    first, slash, repository = name.partition("/")
    host, mark, port = first.rpartition(":" if ":" in first and not first.endswith("]") else "_")
    is_port = port.isascii() and port.isdigit()
    valid_port = is_port and port[0] != "0" and int(port[:6]) <= _MAX_PORT
    written = mark == "_" and valid_port and "_" not in host
    if not slash or not (written or "." in first or ":" in first or first == "localhost"):
        return None
    if first != first.lower() or (mark == ":" and not valid_port):
        raise NameInvalid(f"registry {first[:100]!r} is not valid: expected a host in lower case, with a port if any")
    registry = check_registry(f"{host}:{port}" if written else first)
    return registry, _with_user(registry, repository)


def _with_user(registry: str | None, repository: str) -> str:
    return f"library/{repository}" if registry == DEFAULT_REGISTRY and "/" not in repository else repository


@dataclass(frozen=True, slots=True)
class Reference:
    """What names an image or a part of it. Exactly one of ``tag`` and ``digest`` is set.

    ``registry`` is None if it is not known, which only a reference with a digest may say: the digest names the
    content wherever it is, but a tag means something else in each registry.
    """

    registry: str | None
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        """The full name: ``docker.io/library/nginx:1.27`` or ``docker.io/library/nginx@sha256:…``.

        Without a registry it is no full name: ``library/nginx@sha256:…``.
        """
        prefix = "" if self.registry is None else f"{self.registry}/"
        suffix = f":{self.tag}" if self.digest is None else f"@{self.digest}"
        return f"{prefix}{self.repository}{suffix}"

    @property
    def namespace(self) -> str:
        """The value of ``ns`` in a request to a mirror.

        A digest whose registry is not known goes with ``docker.io``, because Spegel refuses requests without ``ns``
        (pkg/oci/reference.go, Validate).
        """
        return self.registry or DEFAULT_REGISTRY

    @property
    def key(self) -> str:
        """The key in the ring, as Spegel forms it: the digest alone, or the full name with its tag."""
        return str(self) if self.digest is None else self.digest

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a name as people write it: ``nginx`` and ``docker.io/nginx`` mean ``docker.io/library/nginx:latest``.

        Raises NameInvalid, TagInvalid or DigestInvalid.
        """
        found = cls._parse(text)
        repository = check_repository(_with_user(found.registry, found.repository))
        return cls(found.registry, repository, found.tag, found.digest)

    @classmethod
    def _parse(cls, text: str) -> Reference:
        rest, at, digest_text = text.partition("@")
        digest = Digest(digest_text) if at else None
        tag: str | None = None
        slash = rest.rfind("/")
        colon = rest.rfind(":")
        if colon > slash:
            rest, tag = rest[:colon], check_tag(rest[colon + 1 :])
        first, slash_found, remainder = rest.partition("/")
        if slash_found and _is_host(first):
            registry, repository = check_registry(first), remainder
        else:
            registry, repository = DEFAULT_REGISTRY, rest
        check_repository(repository)
        if digest is not None:
            return cls(registry, repository, digest=digest)
        return cls(registry, repository, tag=tag or "latest")

    @classmethod
    def parse_full(cls, text: str) -> Reference | None:
        """The reference if ``text`` has a registry, and either a tag or a digest; None for any other text.

        Nothing is added, because runtimes keep ``docker.io/nginx:1.27`` beside ``docker.io/library/nginx:1.27``.
        """
        try:
            reference = cls._parse(text)
        except OCIError:
            return None
        # a default that was filled in, or a tag that was left out, shows behind the registry
        return reference if str(reference).partition("/")[2] == text.partition("/")[2] else None
