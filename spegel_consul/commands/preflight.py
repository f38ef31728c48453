"""``spegel-consul preflight``: check this node's set-up.

The command collects the settings and prints the findings; the checks belong to
:mod:`spegel_consul.preflight.node_checks`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click
import trio

from spegel_consul.commands.option_types import (
    ADDRESS,
    BOOTSTRAP_KINDS,
    LIST,
    REACHABLE,
    ConfigKind,
    kinds_of,
    option,
    path_option,
)
from spegel_consul.commands.runtime_options import (
    buildkitd_config,
    containerd_registry_config_path,
    containers_config_path,
    docker_certs_path,
)
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.service_definitions import ServiceMode
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.endpoints.check import has_failed, verdict
from spegel_consul.endpoints.dial_back import Peer
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.tls import Tls, TlsError, TlsFiles
from spegel_consul.join.bootstrap_kind import CONSUL_KINDS
from spegel_consul.preflight.node_address import NoAddress, advertised


@click.command()
@option("--registry-addr", type=ADDRESS, default=":5000", help="Address on which the sidecar listens.")
@option("--advertise-addr", type=REACHABLE, default=(), help="As for registry.")
@path_option("--containerd-sock", None, help="containerd's socket.  [default: as for registry]")
@option("--containerd-namespace", type=LIST, multiple=True, default=["auto"], help="As for registry; may be repeated.")
@path_option("--containerd-content-path", None, help="As for registry.")
@path_option("--layout-path", None, help="As for registry; containerd is then checked only if --runtime names it.")
@path_option(
    "--containerd-config",
    None,
    help="containerd's configuration.  [default: the file that the running one was started with]",
)
@option(
    "--runtime",
    type=click.Choice([kind.value for kind in ConfigKind]),
    multiple=True,
    default=["auto"],
    help="Runtimes that pull images here, as for configuration: only their faults are failures; auto finds out. May be"
    " repeated.",
)
@containerd_registry_config_path
@docker_certs_path
@path_option("--docker-sock", "/run/docker.sock", help="Docker's socket.")
@containers_config_path
@buildkitd_config
@option(
    "--bootstrap-kind",
    type=BOOTSTRAP_KINDS,
    multiple=True,
    default=["consul"],
    help="As for registry; Consul is checked if consul or catalog is among them.",
)
@option(
    "--consul-service",
    type=click.Choice([mode.value for mode in ServiceMode]),
    default=ServiceMode.AUTO.value,
    help="As for registry; decides the rights that the token needs.",
)
@option("--consul-leader-key", default=ElectionSettings().key, help="As for registry.")
@path_option("--tls-cert-file", None, help="As for registry; the peers then have TLS too.")
@path_option("--tls-key-file", None, help="As for registry.")
@path_option("--tls-ca-file", None, help="As for registry.")
@option(
    "--tls-verify-clients/--no-tls-verify-clients",
    default=False,
    help="As for registry; peers and mirrors are then shown the certificate.",
)
@option(
    "--peer-tls",
    type=click.Choice(["off", "prefer", "require"]),
    default="off",
    help="As for registry; Consul is asked for a certificate.",
)
@option("--runtime-addr", type=ADDRESS, default=None, help="As for registry.")
@click.option(
    "--peer",
    type=ADDRESS,
    default=None,
    help="Registry of another node, to dial back.  [default: one in Consul's catalog]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def preflight(as_json: bool, peer: Any, **given: Any) -> None:
    """Check this node's set-up for a mirror, and print the lines to change. Exits 1 if a check fails."""
    from spegel_consul.commands.sidecar_client import print_hanging
    from spegel_consul.preflight.consul_checks import ConsulUse
    from spegel_consul.preflight.node_checks import run
    from spegel_consul.preflight.subject import Subject
    from spegel_consul.runtimes.containerd_sockets import find_socket, namespaces

    bound = given["registry_addr"]
    try:
        address = advertised(given["advertise_addr"], bound.host).ip
        certificates = _certificates(given)
        kinds = kinds_of(given["bootstrap_kind"])
        consul = ConsulSettings.from_env(os.environ) if CONSUL_KINDS.intersection(kinds) else None
    except (NoAddress, TlsError) as exc:
        raise click.ClickException(str(exc)) from None
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    # both of Docker's kinds are one runtime here
    runtimes = frozenset(name.removesuffix("-daemon") for name in given["runtime"])
    needs_containerd = given["layout_path"] is None or ConfigKind.CONTAINERD.value in runtimes
    subject = Subject(
        address=address,
        registry_port=bound.port,
        bound=bound.host,
        containerd_sock=given["containerd_sock"] or find_socket() if needs_containerd else None,
        namespaces=namespaces(name for names in given["containerd_namespace"] for name in names),
        content_path=given["containerd_content_path"],
        containerd_config=given["containerd_config"],
        containerd_hosts=given["containerd_registry_config_path"],
        docker_sock=given["docker_sock"],
        docker_hosts=given["docker_certs_path"],
        containers_config=given["containers_config_path"],
        buildkitd_config=given["buildkitd_config"],
        consul=consul,
        consul_use=ConsulUse.of(kinds, ServiceMode(given["consul_service"]), given["consul_leader_key"]),
        leader_key=given["consul_leader_key"],
        peer=Peer(peer.host, peer.port) if peer is not None else None,
        tls=given["tls_cert_file"] is not None and given["peer_tls"] == "off",
        peer_tls=Encryption(given["peer_tls"]) if given["peer_tls"] != "off" else None,
        certificates=certificates,
        client_pair=(given["tls_cert_file"], given["tls_key_file"]) if certificates is not None else None,
        runtime_port=given["runtime_addr"].port if given["runtime_addr"] is not None else None,
        runtimes=frozenset() if "auto" in runtimes else runtimes,
    )
    checks = trio.run(run, subject)
    if as_json:
        click.echo(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        print_hanging([line for check in checks for line in check.lines()] + [("", verdict(checks))])
    raise SystemExit(1 if has_failed(checks) else 0)


def _certificates(given: dict[str, Any]) -> Tls | None:
    """This node's certificates from files; None without a key, which the checks that show no certificate do not need.

    Raises TlsError.
    """
    cert, key, verify_clients = given["tls_cert_file"], given["tls_key_file"], given["tls_verify_clients"]
    if cert is None or key is None:
        if verify_clients:
            raise click.UsageError("--tls-verify-clients needs --tls-cert-file and --tls-key-file")
        return None
    return Tls(TlsFiles(cert, key, given["tls_ca_file"], verify_clients))
