"""``spegel-consul registry``: the sidecar.

The command parses flags into :class:`Settings`, forks the guard, and runs the lifecycle. A new flag belongs here, with
a field in the settings and a place in :mod:`spegel_consul.commands.option_groups`; the check of one value belongs to
its type, and a check of several values to ``_settings``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import trio

from spegel_consul.commands.consul_options import consul_options, election_settings
from spegel_consul.commands.limit_options import limit_options
from spegel_consul.commands.option_groups import SectionedCommand
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
    path_option,
)
from spegel_consul.commands.ring_options import bootstrap_settings, finding_options
from spegel_consul.commands.tag_options import checks_tags, tag_max_age, tag_options
from spegel_consul.commands.zone_options import place_settings, zone_options
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.service_definitions import ServiceMode
from spegel_consul.http.peer_client import PeerLimits
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.tls import TlsFiles
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.lean.imports import without_collector
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.address_policy import PeerPolicy
from spegel_consul.registry.mirror.providers.nearness import CrossZone
from spegel_consul.runtimes.containerd_sockets import namespaces
from spegel_consul.sidecar.settings import Settings
from spegel_consul.signals import stop_signals


@click.command(cls=SectionedCommand)
@option("--registry-addr", type=ADDRESS, default=":5000", help="Address for clients and peers that ask for content.")
@option(
    "--runtime-addr",
    type=ADDRESS,
    default=None,
    help="Address for this node's own runtimes only, in plain text, if those of other machines need TLS and a port"
    " mapping hides who asks (bridge networks); publish it on the host's loopback.",
)
@option("--router-addr", type=ADDRESS, default=":5001", help="Address for the routers of other nodes.")
@option(
    "--metrics-addr", type=ADDRESS, default=":9090", help="Address for metrics, health, the API and the status page."
)
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
    help="Address to advertise to peers and Consul: an IP address, an interface (eth0), a network (10.0.0.0/8) or "
    "'{{ GetPrivateIP }}'; or one of each family with a comma, the preferred one first: 10.0.0.0/8,fd00::/8."
    "  [default: the bound address, else that of the default route]",
)
@option("--node-name", default=socket.gethostname, show_default="host name", help="Name of this node for people.")
@option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/spegel"),
    help="Directory for this node's identity and its last members, and for blobs while they are verified.",
)
@path_option(
    "--containerd-sock",
    None,
    help="containerd's socket; also that of a Docker with the containerd image store."
    "  [default: the first that answers of the sockets of containerd, Docker, k3s, k0s and MicroK8s]",
)
@option(
    "--containerd-namespace",
    type=LIST,
    multiple=True,
    default=["auto"],
    help="Docker: moby. Kubernetes: k8s.io. ctr, nerdctl: default. Several with commas; auto: all these and nomad.",
)
@path_option(
    "--containerd-content-path",
    None,
    help="containerd's content directory.  [default: the one that containerd reports]",
)
@path_option("--layout-path", None, help="OCI image layout to serve instead of containerd's content.")
@option(
    "--preheat",
    type=click.Choice(["off", "peers"]),
    default="off",
    help="Whether programs on this machine and peers may have this node's runtimes pull an image; see docs/preheat.md.",
)
@path_option("--docker-sock", "/run/docker.sock", help="Docker's socket, for preheats.")
@path_option(
    "--containerd-registry-config-path",
    "/etc/containerd/certs.d",
    help="Directory of hosts.toml as containerd sees it, for preheats outside the CRI.",
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
    help="Regular expression of image names to ignore, such as ':latest$'; may be repeated.",
)
@option(
    "--mirror-resolve-timeout", type=DURATION, default="200ms", help="Longest wait for a first peer that has the key."
)
@option(
    "--mirror-resolve-retries", type=click.IntRange(1, 20), default=3, help="How many peers are tried for one request."
)
@tag_options
@option(
    "--verify",
    type=click.Choice(["on", "auto", "off"]),
    default="on",
    help="Whether blobs from peers are hashed while they pass, so that a blob with wrong bytes is never completed."
    " auto: not those above --verify-first for a client on this machine, because a runtime hashes them too.",
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
    help="Least bytes per second of a peer; if it sends less, another peer with the blob sends the rest. 0 for none.",
)
@limit_options
@option(
    "--follow",
    type=click.Choice(["on", "off"]),
    default="on",
    help="Whether content that no node has yet is read from a node that is downloading it, so that a cold cluster asks"
    " the upstream registry once.",
)
@option(
    "--follow-chain",
    type=click.IntRange(1, 32),
    default=6,
    help="How many nodes read from each other in a row before one of them sends to a second one: many for narrow links"
    " between nodes, few for images of many small layers. The same on all nodes.",
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
    help="Serve only clients with a certificate of these authorities; a runtime gets its own by client= in hosts.toml.",
)
@option(
    "--peer-tls",
    type=click.Choice(["off", "prefer", "require"]),
    default="off",
    help="Encryption between nodes, with certificates of Consul's own authority, or with --tls-cert-file; this"
    " machine's runtimes go on in plain text. prefer: with peers that can; require: other machines are refused in plain"
    " text. off: no encryption, or with --tls-cert-file of all connections.",
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
    help="File with name:password lines: runtimes and peers must send one of them; this node sends the first to peers.",
)
@zone_options
@finding_options
@option(
    "--on-leader-change",
    type=click.Choice([policy.value for policy in OnLeaderChange]),
    default="rejoin",
    help="Reaction of the router to a new leader: join through it too; start a second router, then stop the first; "
    "nothing. Only consul and nomad-var have a leader.",
)
@consul_options
@option(
    "--hang-timeout",
    type=DURATION,
    default="10s",
    help="End the sidecar after it has hung for this time, by a second, small process; 0 for none.",
)
@option(
    "--skip-preflight",
    is_flag=True,
    show_default=False,
    help="Start even if peers can't reach this node, and log no findings about its set-up.",
)
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Least level of events that are logged.",
)
@option(
    "--log-format",
    type=click.Choice(["json", "console"]),
    default="json",
    help="Format of the log: for machines or for people.",
)
def registry(**given: Any) -> None:
    """Run the sidecar: serve this node's content, and mirror other content from peers.

    Consul's address and credentials come from CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of its tools.
    """
    settings = _settings(given)
    # ignored until the sidecar receives it, because its default action ends the process
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if settings.hang_timeout:
        from spegel_consul.sidecar.watchdog import become_guarded

        settings = replace(settings, heartbeat=become_guarded(settings.hang_timeout))
    # exit at once, because before the sidecar handles these signals there is nothing to stop in order
    stopping = stop_signals()
    for each in stopping:
        signal.signal(each, lambda *_: os._exit(0))
    # imported after the fork, because the guard does not need them
    with without_collector():
        from spegel_consul import log
        from spegel_consul.sidecar import heap, lifecycle, time_slice
        from spegel_consul.sidecar.prepare import StartError

    log.configure(given["log_level"], given["log_format"])

    async def run(settings: Settings) -> None:
        try:
            await lifecycle.run(settings)
        finally:
            # Ignored from here on, because a signal would be logged as an error of trio's closed file descriptor, or
            # would end the process once the interpreter has dropped the handlers.
            for each in stopping:
                signal.signal(each, signal.SIG_IGN)

    time_slice.shorten()
    heap.share_one(ctypes.CDLL(None))
    heap.freeze()
    try:
        trio.run(run, settings)
    except StartError as exc:
        raise click.ClickException(str(exc)) from None
    except lifecycle.NewStartNeeded:
        raise SystemExit(1) from None


def _settings(given: dict[str, Any]) -> Settings:
    """Raises click.UsageError for values that are wrong together or in the environment."""
    try:
        images = ImageFilter.build(flat(given["mirrored_registries"]), given["registry_filters"])
        bootstrap = bootstrap_settings(given, os.environ)
        election = election_settings(given)
        consul = ConsulSettings.from_env(os.environ) if bootstrap.uses_consul else None
        place = place_settings(given, os.environ, uses_consul=consul is not None)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    policy = PeerPolicy(given["peer_policy"])
    if policy is PeerPolicy.CATALOG and (consul is None or given["consul_service"] == ServiceMode.OFF.value):
        raise click.UsageError(
            "--peer-policy=catalog needs Consul's catalog: give --bootstrap-kind=consul, and not --consul-service=off"
        )
    if given["preheat"] == "peers" and given["layout_path"] is not None:
        raise click.UsageError("--preheat=peers needs a runtime, and --layout-path has none: give only one of them")
    return Settings(
        registry_addr=given["registry_addr"],
        runtime_addr=given["runtime_addr"],
        router_addr=given["router_addr"],
        metrics_addr=given["metrics_addr"],
        web_allowed_hosts=flat(given["web_allowed_hosts"]),
        advertise_addr=given["advertise_addr"],
        node_name=given["node_name"],
        data_dir=given["data_dir"],
        containerd_sock=given["containerd_sock"],
        containerd_namespaces=namespaces(flat(given["containerd_namespace"])),
        containerd_content_path=given["containerd_content_path"],
        docker_sock=given["docker_sock"],
        containerd_registry_config_path=given["containerd_registry_config_path"],
        preheat=given["preheat"] == "peers",
        layout_path=given["layout_path"],
        images=images,
        mirror=MirrorSettings(
            resolve_timeout=given["mirror_resolve_timeout"],
            attempts=given["mirror_resolve_retries"],
            verify=given["verify"] != "off",
            verify_first=given["verify_first"],
            runtime_verifies=given["verify"] == "auto",
            follow=given["follow"] == "on",
            cross_zone=CrossZone(given["cross_zone"]),
            download_rate=given["download_rate_limit"],
            tag_max_age=tag_max_age(given),
        ),
        tag_check=checks_tags(given, images),
        follow_chain=given["follow_chain"],
        peer_limits=PeerLimits(rate=given["peer_min_rate"]),
        max_upload=given["max_upload"],
        upload_rate=given["upload_rate_limit"],
        tls=_tls(given),
        peer_tls=_peer_tls(given, consul),
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
        **place,
    )


def _peer_tls(given: dict[str, Any], consul: ConsulSettings | None) -> Encryption | None:
    if given["peer_tls"] == "off":
        return None
    if consul is None and given["tls_cert_file"] is None:
        raise click.UsageError(
            f"--peer-tls={given['peer_tls']} needs certificates: of Consul, by --bootstrap-kind=consul or catalog, or"
            " --tls-cert-file and --tls-key-file"
        )
    return Encryption(given["peer_tls"])


def _tls(given: dict[str, Any]) -> TlsFiles | None:
    cert, key, ca = given["tls_cert_file"], given["tls_key_file"], given["tls_ca_file"]
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert-file and --tls-key-file must be given together")
    if cert is None:
        if ca is not None or given["tls_verify_clients"]:
            raise click.UsageError("--tls-ca-file and --tls-verify-clients need --tls-cert-file and --tls-key-file")
        return None
    if ca is None and given["tls_verify_clients"]:
        raise click.UsageError(
            "--tls-verify-clients needs --tls-ca-file, because the system's authorities sign for anybody"
        )
    return TlsFiles(cert, key, ca, given["tls_verify_clients"])
