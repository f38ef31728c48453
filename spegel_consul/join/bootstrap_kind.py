"""The kinds of bootstrap, apart from their settings, because commands that only name them must not import the sources.

A new kind needs a value here and a case in :mod:`spegel_consul.join.assemble`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class BootstrapKind(Enum):
    """A kind of bootstrap; the values are those of ``--bootstrap-kind``."""

    CONSUL = "consul"
    CATALOG = "catalog"
    NOMAD_VAR = "nomad-var"
    NOMAD_SERVICE = "nomad-service"
    HTTP = "http"
    DNS = "dns"
    STATIC = "static"
    FILE = "file"


CONSUL_KINDS = frozenset({BootstrapKind.CONSUL, BootstrapKind.CATALOG})
NOMAD_KINDS = frozenset({BootstrapKind.NOMAD_VAR, BootstrapKind.NOMAD_SERVICE})
ELECTING_KINDS = frozenset({BootstrapKind.CONSUL, BootstrapKind.NOMAD_VAR})


def elector(kinds: Iterable[BootstrapKind]) -> BootstrapKind | None:
    """The kind whose lock says who leads: the first one that elects; None if none does."""
    return next((kind for kind in kinds if kind in ELECTING_KINDS), None)
