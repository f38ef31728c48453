"""The settings of the bootstraps: which kinds are used, and the settings of each kind.

:meth:`BootstrapSettings.check` finds missing and unusable settings before the start.  A new setting of a bootstrap
belongs here, with its check.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spegel_consul.join.bootstrap_kind import CONSUL_KINDS, BootstrapKind
from spegel_consul.join.peer_formats import parse_peers
from spegel_consul.join.sources.http_document import HttpSource
from spegel_consul.join.sources.nomad_api import NomadSettings, variable_path
from spegel_consul.lean.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """``kinds`` in order of preference; each other field is for one kind. The help of ``registry`` explains them."""

    kinds: tuple[BootstrapKind, ...]
    static_peers: tuple[str, ...] = ()
    http_urls: tuple[str, ...] = ()
    http_cert_dir: Path | None = None
    dns_domain: str | None = None
    dns_server: tuple[str, int] | None = None
    nomad: NomadSettings | None = None
    nomad_var: str = ""
    nomad_service: str = ""
    file: Path | None = None

    @property
    def uses_consul(self) -> bool:
        return bool(CONSUL_KINDS.intersection(self.kinds))

    def check(self) -> None:
        """Raises ValueError for a setting that is missing or can't be used."""
        given: Mapping[BootstrapKind, tuple[object, str]] = {
            BootstrapKind.STATIC: (self.static_peers, "--static-bootstrap-peers"),
            BootstrapKind.HTTP: (self.http_urls, "--http-bootstrap-url"),
            BootstrapKind.DNS: (self.dns_domain, "--dns-bootstrap-domain"),
            BootstrapKind.FILE: (self.file, "--bootstrap-file"),
            BootstrapKind.NOMAD_SERVICE: (self.nomad_service, "--nomad-service"),
            BootstrapKind.NOMAD_VAR: (self.nomad_var, "--nomad-variable"),
        }
        for kind, (value, flag) in given.items():
            if kind in self.kinds and not value:
                raise ValueError(f"--bootstrap-kind={kind.value} needs {flag}")
        parse_peers(self.static_peers)
        for url in self.http_urls:
            HttpSource(url, self.http_cert_dir)
        if BootstrapKind.NOMAD_VAR in self.kinds:
            variable_path(self.nomad_var)
        if self.nomad is not None and self.nomad.address.startswith("https"):
            self.nomad.tls.context()
