"""Registries to mirror and mirrors to ask, parsed from the command line.

Users write a registry in many forms (with or without scheme, with a port, in capitals, by another name of Docker Hub).
Runtimes take the host of the image's name, letter for letter, as the name of a directory. So the forms are normalized
here, and a new accepted form belongs here.

A runtime with an HTTP proxy asks it for everything but loopback (net/http of Go), and a proxy in front of a mirror
breaks pulls. So this node's registry is named by its loopback address wherever it listens there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.errors import NameInvalid
from spegel_consul.oci.filters import registry_host
from spegel_consul.oci.reference import check_registry
from spegel_consul.peers import host_port

DEFAULT = "_default"
"""The directory that runtimes read for registries without a directory of their own (containerd docs/hosts.md)."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry, or all of them as ``_default``. ``server``: its URL, if the runtime can't derive it from the host."""

    host: str
    server: str | None = None

    @property
    def directories(self) -> tuple[str, ...]:
        """Names of its directory, in the order in which containerd looks for them (core/remotes/docker/config)."""
        host, colon, port = self.host.rpartition(":")
        return (f"{host}_{port}_", self.host) if colon and host and port.isdigit() else (self.host,)


@dataclass(frozen=True, slots=True)
class Target:
    """A mirror: ``http://10.0.0.7:5000``."""

    url: str

    @property
    def address(self) -> str:
        """``10.0.0.7:5000``."""
        return urlsplit(self.url).netloc

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def is_plain(self) -> bool:
        """Whether it is asked without TLS."""
        return self.url.startswith("http://")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises ValueError with a clear message. IPv6 without brackets is understood, as in Spegel."""
        example = "must look like http://10.0.0.7:5000"
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise ValueError(f"mirror target {text!r} {example}")
        rest = rest.removesuffix("/")
        if any(sign in rest for sign in "/?#@") or not rest:
            raise ValueError(f"mirror target {text!r} {example}, without path, query or user")
        if rest.count(":") > 1 and "[" not in rest:
            rest = _bracketed(rest)
        try:
            check_registry(rest)
            port = urlsplit(f"http://{rest}").port
        except (NameInvalid, ValueError):
            raise ValueError(f"mirror target {text!r} {example}; IPv6 goes in brackets") from None
        if port == 0:
            raise ValueError(f"mirror target {text!r} has port 0, which no client can connect to")
        return cls(f"{scheme.lower()}://{rest.lower()}")


def parse_registries(texts: Iterable[str]) -> tuple[Registry, ...]:
    """Each registry once, in order; ``_default`` when there is none. Raises ValueError with a clear message."""
    found: dict[str, Registry] = {}
    for text in texts:
        if text == DEFAULT:
            registry = Registry(DEFAULT)
        else:
            host = registry_host(text)
            registry = Registry(host, f"http://{host}" if text.lower().startswith("http://") else None)
        known = found.setdefault(registry.host, registry)
        if known.server != registry.server:
            raise ValueError(f"registry {registry.host} is given both with http:// and without: give it once")
    return tuple(found.values()) or (Registry(DEFAULT),)


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Each mirror once, in order. Raises ValueError with a clear message."""
    return tuple(dict.fromkeys(map(Target.parse, texts)))


def own_mirror(bound: str, port: int) -> Target:
    """The registry of this node, which listens on ``bound`` (empty for all interfaces) and ``port``.

    Raises ValueError with a clear message for port 0.
    """
    if port == 0:
        raise ValueError("--registry-addr has port 0, which no runtime can be told: give the registry's port")
    try:
        address = ipaddress.ip_address(bound or "0.0.0.0")  # noqa: S104
    except ValueError:
        return Target.parse(f"http://{bound}:{port}")
    if address.is_unspecified:
        # the registry takes IPv4 too on ":5000", and Linux does on "[::]:5000", unless the machine says otherwise
        address = ipaddress.IPv4Address("127.0.0.1")
    return Target(f"http://{host_port(str(address), port)}")


def _bracketed(rest: str) -> str:
    """``fd00::7:5000`` as ``[fd00::7]:5000``: Nomad's variables have no brackets around an address."""
    host, _, port = rest.rpartition(":")
    for address, suffix in ((host, f":{port}"), (rest, "")):
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            continue
        if not suffix or (port.isdigit() and int(port) <= 65535):
            return f"[{address}]{suffix}"
    return rest
