"""``spegel-consul registry``: the sidecar."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import trio

from spegel_consul.commands.consul_options import consul_options, election_settings
from spegel_consul.commands.option_types import (
    ADDRESS,
    DURATION,
    FILE,
    HOSTS,
    LIST,
    REACHABLE,
    SIZE,
    flat,
    option,
)
from spegel_consul.commands.ring_options import bootstrap_settings, finding_options
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.registration import ServiceMode
from spegel_consul.http.peer_client import PeerLimits
from spegel_consul.http.tls import TlsFiles
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.provider_policy import PeerPolicy
from spegel_consul.runtimes.containerd_sockets import namespaces
from spegel_consul.sidecar.settings import Settings
from spegel_consul.signals import stop_signals


@click.command()
@option("--registry-addr", type=ADDRESS, default=":5000", help="Where clients and peers ask for content.")
@option("--router-addr", type=ADDRESS, default=":5001", help="Where other routers connect.")
@option("--metrics-addr", type=ADDRESS, default=":9090", help="Where metrics are read.")
@option(
    "--web-allowed-hosts",
    type=HOSTS,
    multiple=True,
    help="Names by which browsers and programs may call the metrics port, such as node7.example.com or *.example.com,"
    " besides addresses, this node's name, those in Consul's catalog and *.consul; several with commas.",
)
@option(
    "--advertise-addr",
    type=REACHABLE,
    default=(),
    help="Address that peers and Consul are told: an IP address, an interface (eth0), a network (10.0.0.0/8) or "
    "'{{ GetPrivateIP }}'; or one of each family with a comma, the preferred one first: 10.0.0.0/8,fd00::/8."
    "  [default: the one bound to, else that of the route out]",
)
@option("--node-name", default=socket.gethostname, show_default="host name", help="Name of this node for people.")
@option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/spegel"),
    help="Keeps this node's identity across restarts; nothing else is stored.",
)
@option(
    "--containerd-sock",
    type=click.Path(path_type=Path),
    default=None,
    help="containerd's socket; also that of a Docker with the containerd image store."
    "  [default: the first that answers of the places of containerd, Docker, k3s, k0s and MicroK8s]",
)
@option(
    "--containerd-namespace",
    type=LIST,
    multiple=True,
    default=["auto"],
    help="Docker: moby. Kubernetes: k8s.io. ctr, nerdctl: default. Several with commas; auto is all that are known.",
)
@option(
    "--containerd-content-path",
    type=click.Path(path_type=Path),
    default=None,
    help="containerd's content directory.  [default: what containerd says]",
)
@option(
    "--layout-path",
    type=click.Path(path_type=Path),
    default=None,
    help="OCI image layout that is served in place of a containerd.",
)
@option(
    "--mirrored-registries",
    type=LIST,
    multiple=True,
    help="Registries to mirror, such as https://docker.io; several with commas.  [default: all]",
)
@option(
    "--registry-filters",
    multiple=True,
    help="Regular expression of image names to leave alone, such as ':latest$'; may be repeated.",
)
@option(
    "--mirror-resolve-timeout", type=DURATION, default="200ms", help="Longest wait for a first peer that has the key."
)
@option(
    "--mirror-resolve-retries", type=click.IntRange(1, 20), default=3, help="How many peers are tried for one request."
)
@option(
    "--verify",
    type=click.Choice(["on", "off"]),
    default="on",
    help="Whether blobs from peers are hashed while they pass, so that a blob with wrong bytes is never completed.",
)
@option(
    "--verify-first",
    type=SIZE,
    default="32MiB",
    help="Size up to which a blob from a peer is verified before its first byte is sent, so that wrong bytes fail no"
    " pull; 0 for none, all for any.",
)
@option(
    "--peer-min-rate",
    type=SIZE,
    default="2MiB",
    help="What a peer should send in a second; of one that sends less, the rest of a blob comes from another peer that"
    " has it. 0 for none.",
)
@option(
    "--follow",
    type=click.Choice(["on", "off"]),
    default="off",
    help="Whether content that no node has yet is read from a node that is downloading it, so that a cold cluster asks"
    " the upstream registry once.",
)
@option(
    "--tls-cert-file",
    type=FILE,
    default=None,
    help="Certificate for the registry's port, with its chain, in PEM form; it must name the advertised address, and"
    " all nodes must have one. The files are read again when they change.",
)
@option("--tls-key-file", type=FILE, default=None, help="Key of that certificate.")
@option("--tls-ca-file", type=FILE, default=None, help="Authorities of peers' certificates.  [default: the system's]")
@option(
    "--tls-verify-clients/--no-tls-verify-clients",
    default=False,
    help="Serve only those who show a certificate of these authorities; the runtime does by client= in hosts.toml.",
)
@option(
    "--peer-policy",
    type=click.Choice([policy.value for policy in PeerPolicy]),
    default="any",
    help="Which peers are asked for content: any that the ring names, or only those whose registry's address and port"
    " are in Consul's catalog.",
)
@option(
    "--basic-auth-file",
    type=FILE,
    default=None,
    help="File with name:password lines, one of which is asked of runtimes and peers; the first is shown to peers.",
)
@finding_options
@option(
    "--on-leader-change",
    type=click.Choice([policy.value for policy in OnLeaderChange]),
    default="rejoin",
    help="What the router does: join through the new leader too; make itself anew, then let go of the old; nothing. "
    "Only consul and nomad-var have a leader.",
)
@consul_options
@option(
    "--hang-timeout",
    type=DURATION,
    default="10s",
    help="End the sidecar when it has hung for so long, with a second, small process that watches it; 0 for none.",
)
@option(
    "--skip-preflight",
    is_flag=True,
    show_default=False,
    help="Start even if nobody could reach this node, and say nothing about its set-up.",
)
@option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="Least level.")
@option("--log-format", type=click.Choice(["json", "console"]), default="json", help="For machines or for people.")
def registry(**given: Any) -> None:
    """Run the sidecar: serve what this node has, find the rest at other nodes.

    Consul is reached as CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of Consul's own tools say.
    """
    settings = _settings(given)
    if settings.hang_timeout:
        from spegel_consul.sidecar.watchdog import become_guarded

        settings = replace(settings, heartbeat=become_guarded(settings.hang_timeout))
    # before the sidecar listens for them there is nothing to bring in order, and nothing after
    stopping = stop_signals()
    for each in stopping:
        signal.signal(each, lambda *_: os._exit(0))
    # only the sidecar itself needs the rest
    from spegel_consul import log
    from spegel_consul.sidecar import lifecycle
    from spegel_consul.sidecar.prepare import StartError

    log.configure(given["log_level"], given["log_format"])

    async def run(settings: Settings) -> None:
        try:
            await lifecycle.run(settings)
        finally:
            # A signal from here on would be reported as one that trio's closed file descriptor did not take, and, once
            # the interpreter has dropped the handlers, as the one that ended the process.
            for each in stopping:
                signal.signal(each, signal.SIG_IGN)

    try:
        trio.run(run, settings)
    except StartError as exc:
        raise click.ClickException(str(exc)) from None


def _settings(given: dict[str, Any]) -> Settings:
    """Raises click.UsageError for values that are wrong together or in the environment."""
    try:
        images = ImageFilter.build(flat(given["mirrored_registries"]), given["registry_filters"])
        bootstrap = bootstrap_settings(given, os.environ)
        election = election_settings(given)
        consul = ConsulSettings.from_env(os.environ) if bootstrap.uses_consul else None
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    policy = PeerPolicy(given["peer_policy"])
    if policy is PeerPolicy.CATALOG and (consul is None or given["consul_service"] == ServiceMode.OFF.value):
        raise click.UsageError(
            "--peer-policy=catalog needs Consul's catalog: --bootstrap-kind=consul, not without services"
        )
    return Settings(
        registry_addr=given["registry_addr"],
        router_addr=given["router_addr"],
        metrics_addr=given["metrics_addr"],
        web_allowed_hosts=flat(given["web_allowed_hosts"]),
        advertise_addr=given["advertise_addr"],
        node_name=given["node_name"],
        data_dir=given["data_dir"],
        containerd_sock=given["containerd_sock"],
        containerd_namespaces=namespaces(flat(given["containerd_namespace"])),
        containerd_content_path=given["containerd_content_path"],
        layout_path=given["layout_path"],
        images=images,
        mirror=MirrorSettings(
            resolve_timeout=given["mirror_resolve_timeout"],
            attempts=given["mirror_resolve_retries"],
            verify=given["verify"] == "on",
            verify_first=given["verify_first"],
            follow=given["follow"] == "on",
        ),
        peer_limits=PeerLimits(rate=given["peer_min_rate"]),
        tls=_tls(given),
        basic_auth_file=given["basic_auth_file"],
        peer_policy=policy,
        skip_preflight=given["skip_preflight"],
        hang_timeout=given["hang_timeout"],
        heartbeat=None,
        bootstrap=bootstrap,
        consul=consul,
        consul_service=ServiceMode(given["consul_service"]),
        election=election,
        on_leader_change=OnLeaderChange(given["on_leader_change"]),
    )


def _tls(given: dict[str, Any]) -> TlsFiles | None:
    cert, key, ca = given["tls_cert_file"], given["tls_key_file"], given["tls_ca_file"]
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert-file and --tls-key-file are given together or not at all")
    if cert is None:
        if ca is not None or given["tls_verify_clients"]:
            raise click.UsageError("--tls-ca-file and --tls-verify-clients need --tls-cert-file and --tls-key-file")
        return None
    if ca is None and given["tls_verify_clients"]:
        raise click.UsageError("--tls-verify-clients needs --tls-ca-file: the system's authorities vouch for anybody")
    return TlsFiles(cert, key, ca, given["tls_verify_clients"])
