"""The names by which a node's metrics port may be called.

A site can point a name of its own at a node's address (DNS rebinding), and the browser then treats the node as that
site. The browser sends the name in the Host header, so only names that no other site can have are accepted. A new kind
of accepted name belongs here.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spegel_consul.web.node_views import Node

_ALLOWED = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z")


class OwnNames:
    """The names by which a node may be called: IP addresses, ``localhost``, ``name``, those of the catalog, all of
    ``*.consul``, and ``allowed``, of which ``*.example.com`` stands for all names below ``example.com``."""

    def __init__(self, name: str, catalog: Callable[[], Iterable[str]], allowed: Iterable[str] = ()) -> None:
        names = [each.lower().rstrip(".") for each in (name, "localhost", "*.consul", *allowed)]
        self._names = frozenset(names)
        self._below = tuple(each.removeprefix("*") for each in names if each.startswith("*."))
        self._catalog = catalog

    def have(self, host: str) -> bool:
        """Whether the value of a Host header, with or without a port, is one of them."""
        try:
            found = (urllib.parse.urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if not found:
            return False
        if found in self._names or found.endswith(self._below):
            return True
        try:
            ipaddress.ip_address(found)
        except ValueError:
            return found in {each.lower() for each in self._catalog()}
        return True


def names_of(node: Node) -> OwnNames:
    """The names by which the metrics port of ``node`` may be called."""
    return OwnNames(node.name, node.catalog_names, node.allowed_hosts)


def allowed_host(text: str) -> str:
    """A name for :class:`OwnNames`. Raises ValueError with a clear message."""
    name = text.lower().rstrip(".")
    if not _ALLOWED.match(name):
        raise ValueError(f"{text!r} is not a host name: expected node7.example.com or *.example.com, without a port")
    return name
