"""Which images take part: the registries that are mirrored, and expressions that exclude names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field
from urllib.parse import urlsplit

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.errors import NameInvalid
from spegel_consul.oci.reference import check_registry, registry_name


def registry_host(text: str) -> str:
    """The one name of the registry ``https://docker.io`` or ``docker.io``. Raises ValueError with a clear message."""
    host = text
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"mirrored registry {text!r} must look like https://docker.io, without a path")
        host = parts.netloc
    try:
        return check_registry(host)
    except NameInvalid:
        raise ValueError(f"mirrored registry {text!r} must look like https://docker.io or docker.io") from None


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """Accepts a full image name if its registry is mirrored and no expression is found in it.

    ``registries``: hosts; empty means all. ``excluded``: searched in ``registry/repository:tag`` or ``…@digest``,
    as Spegel's ``--registry-filters`` are. Expressions see a registry by its one name: ``docker.io``, in lower case.
    """

    registries: frozenset[str] = frozenset()
    excluded: tuple[re.Pattern[str], ...] = field(default=())

    @classmethod
    def build(cls, registries: Iterable[str] = (), excluded: Iterable[str] = ()) -> ImageFilter:
        """From the texts of the settings. Raises ValueError that names the bad one."""
        patterns = []
        for text in excluded:
            try:
                patterns.append(re.compile(text))
            except re.error as exc:
                raise ValueError(f"registry filter {text!r} is not a regular expression: {exc}") from None
        return cls(frozenset(map(registry_host, registries)), tuple(patterns))

    def accepts(self, name: str) -> bool:
        """Whether an image of this full name is mirrored, announced and resolved."""
        host, slash, rest = name.partition("/")
        if slash:
            host = registry_name(host)
            name = f"{host}/{rest}"
        if self.registries and host not in self.registries:
            return False
        return not any(pattern.search(name) for pattern in self.excluded)
