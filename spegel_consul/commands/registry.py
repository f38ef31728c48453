"""``spegel-consul registry``: the sidecar."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import click
import trio

from spegel_consul.bootstrap.static import StaticBootstrap
from spegel_consul.commands.consul import consul_options, election_settings
from spegel_consul.commands.options import ADDRESS, DURATION, IP, LIST, option
from spegel_consul.config import BootstrapKind, Settings, StoreKind
from spegel_consul.consul.registration import ServiceMode
from spegel_consul.consul.settings import ConsulSettings
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror import MirrorSettings


@click.command()
@option("--registry-addr", type=ADDRESS, default=":5000", help="Where clients and peers ask for content.")
@option("--router-addr", type=ADDRESS, default=":5001", help="Where other routers connect.")
@option("--metrics-addr", type=ADDRESS, default=":9090", help="Where metrics are read.")
@option(
    "--advertise-addr",
    type=IP,
    default=None,
    help="IP address that peers and Consul are told.  [default: the one bound to, else that of the route out]",
)
@option("--node-name", default=socket.gethostname, show_default="host name", help="Name of this node for people.")
@option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/spegel"),
    help="Keeps this node's identity across restarts; nothing else is stored.",
)
@option("--store", type=click.Choice([kind.value for kind in StoreKind]), default="containerd", help="What is served.")
@option(
    "--containerd-sock",
    type=click.Path(path_type=Path),
    default=Path("/run/containerd/containerd.sock"),
    help="containerd's socket; also that of a Docker with the containerd image store.",
)
@option("--containerd-namespace", default="moby", help="Docker: moby. Kubernetes: k8s.io. ctr, nerdctl: default.")
@option(
    "--containerd-content-path",
    type=click.Path(path_type=Path),
    default=None,
    help="containerd's content directory.  [default: what containerd says]",
)
@option("--layout-path", type=click.Path(path_type=Path), default=None, help="OCI image layout, for --store=layout.")
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
    help="Whether blobs from peers are hashed while they pass, so that wrong bytes never reach the runtime.",
)
@option(
    "--manifest-cache-size",
    type=click.IntRange(0),
    default=16 << 20,
    help="Bytes of manifests and other small contents that are kept in memory.",
)
@option(
    "--bootstrap-kind",
    type=click.Choice([kind.value for kind in BootstrapKind]),
    default="consul",
    help="How the ring is found.",
)
@option(
    "--static-bootstrap-peers",
    type=LIST,
    multiple=True,
    help="Peers to join through, such as /ip4/10.0.0.7/tcp/5001 or 10.0.0.7:5001; several with commas.",
)
@consul_options
@option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="Least level.")
@option("--log-format", type=click.Choice(["json", "console"]), default="json", help="For machines or for people.")
def registry(**given: Any) -> None:
    """Run the sidecar: serve what this node has, find the rest at other nodes.

    Consul is reached as CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of Consul's own tools say.
    """
    from spegel_consul import log, sidecar

    settings = _settings(given)
    log.configure(given["log_level"], given["log_format"])
    try:
        trio.run(sidecar.run, settings)
    except sidecar.StartError as exc:
        raise click.ClickException(str(exc)) from None


def _settings(given: dict[str, Any]) -> Settings:
    """Raises click.UsageError for values that are wrong together or in the environment."""
    store = StoreKind(given["store"])
    bootstrap = BootstrapKind(given["bootstrap_kind"])
    peers = _flat(given["static_bootstrap_peers"])
    if store is StoreKind.LAYOUT and given["layout_path"] is None:
        raise click.UsageError("--store=layout needs --layout-path")
    if bootstrap is BootstrapKind.STATIC and not peers:
        raise click.UsageError("--bootstrap-kind=static needs --static-bootstrap-peers")
    try:
        images = ImageFilter.build(_flat(given["mirrored_registries"]), given["registry_filters"])
        consul = ConsulSettings.from_env(os.environ) if bootstrap is BootstrapKind.CONSUL else None
        election = election_settings(given)
        StaticBootstrap(peers)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    return Settings(
        registry_addr=given["registry_addr"],
        router_addr=given["router_addr"],
        metrics_addr=given["metrics_addr"],
        advertise_addr=given["advertise_addr"],
        node_name=given["node_name"],
        data_dir=given["data_dir"],
        store=store,
        containerd_sock=given["containerd_sock"],
        containerd_namespace=given["containerd_namespace"],
        containerd_content_path=given["containerd_content_path"],
        layout_path=given["layout_path"],
        images=images,
        mirror=MirrorSettings(
            resolve_timeout=given["mirror_resolve_timeout"],
            attempts=given["mirror_resolve_retries"],
            verify=given["verify"] == "on",
        ),
        manifest_cache_size=given["manifest_cache_size"],
        bootstrap=bootstrap,
        static_peers=peers,
        consul=consul,
        consul_service=ServiceMode(given["consul_service"]),
        election=election,
    )


def _flat(lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(item for each in lists for item in each)
