"""Flags about the bootstrap, and the settings that they make. A flag of a new bootstrap source belongs here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spegel_consul.commands.lock_options import nomad_variable
from spegel_consul.commands.option_types import (
    ALL_BOOTSTRAP_KINDS,
    BOOTSTRAP_KINDS,
    LIST,
    Parsed,
    flat,
    kinds_of,
    option,
    together,
)
from spegel_consul.http.server.listen import ListenAddress
from spegel_consul.join.bootstrap_kind import NOMAD_KINDS
from spegel_consul.join.join_settings import BootstrapSettings
from spegel_consul.join.sources.nomad_api import NomadSettings


def _server(text: str) -> tuple[str, int]:
    address = ListenAddress.parse(text if ":" in text.rpartition("]")[2] or text.endswith("]") else f"{text}:53")
    if not address.host:
        raise ValueError(f"{text!r} is not a DNS server: expected an IP address, with :port if it is not 53")
    return address.host, address.port


finding_options = together(
    option(
        "--bootstrap-kind",
        type=BOOTSTRAP_KINDS,
        multiple=True,
        default=("consul",),
        show_default="consul",
        help=f"Sources of bootstrap peers: {ALL_BOOTSTRAP_KINDS}. Several with commas: the first that yields peers is "
        "used, the others are fall-backs.",
    ),
    option(
        "--static-bootstrap-peers",
        type=LIST,
        multiple=True,
        help="static: peers to join through, such as /ip4/10.0.0.7/tcp/5001 or 10.0.0.7:5001; several with commas.",
    ),
    option(
        "--http-bootstrap-url",
        type=LIST,
        multiple=True,
        help="http: URL of a list of peers, such as another node's http://10.0.0.7:9090/id, or https://10.0.0.7:5000/id"
        " of nodes with certificates; several with commas.",
    ),
    option(
        "--http-bootstrap-cert-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="http: directory with ca.crt and, for mutual TLS, tls.crt and tls.key.  [default: --tls-ca-file and the "
        "registry's own]",
    ),
    option(
        "--dns-bootstrap-domain",
        default=None,
        help="dns: name whose SRV records, or else addresses, are routers, such as spegel-router.service.consul.",
    ),
    option(
        "--dns-bootstrap-server",
        type=Parsed("ip[:port]", _server),
        default=None,
        help="dns: server to ask, such as 127.0.0.1:8600.  [default: those in /etc/resolv.conf]",
    ),
    nomad_variable,
    option("--nomad-service", default="spegel-router", help="nomad-service: name of the routers' service in Nomad."),
    option(
        "--bootstrap-file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="file: list of peers that another program maintains, such as a rendered template.",
    ),
)


def bootstrap_settings(given: Mapping[str, Any], env: Mapping[str, str]) -> BootstrapSettings:
    """Settings from the values of the flags. Raises ValueError for a missing or unusable value."""
    kinds = kinds_of(given["bootstrap_kind"])
    settings = BootstrapSettings(
        kinds,
        static_peers=flat(given["static_bootstrap_peers"]),
        http_urls=flat(given["http_bootstrap_url"]),
        http_cert_dir=given["http_bootstrap_cert_dir"],
        dns_domain=given["dns_bootstrap_domain"],
        dns_server=given["dns_bootstrap_server"],
        nomad=NomadSettings.from_env(env) if NOMAD_KINDS.intersection(kinds) else None,
        nomad_var=given["nomad_variable"],
        nomad_service=given["nomad_service"],
        file=given["bootstrap_file"],
    )
    settings.check()
    return settings
