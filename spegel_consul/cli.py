# Every flag is also an environment variable, because a Nomad job sets variables more easily than arguments.
# Flags and variables are Spegel's where the meaning is Spegel's.  What is wrong with a value is said in one
# line: these lines are read in an allocation's log, not on a terminal.

"""The command line."""

from __future__ import annotations

import os
import platform
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from spegel_consul import __version__
from spegel_consul.bootstrap.static import StaticBootstrap
from spegel_consul.config import BootstrapKind, Settings, StoreKind, check_advertise_addr
from spegel_consul.consul.duration import parse_duration
from spegel_consul.consul.settings import ConsulSettings
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry.mirror import MirrorSettings
from spegel_consul.server.listen import ListenAddress

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2


class _Parsed(click.ParamType[Any]):
    """A parameter that a function parses; its ValueError is what the user reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


ADDRESS = _Parsed("host:port", ListenAddress.parse)
DURATION = _Parsed("duration", parse_duration)
IP = _Parsed("ip", check_advertise_addr)
LIST = _Parsed("list", lambda text: tuple(part for part in text.replace(",", " ").split() if part))


def _option(flag: str, **kwargs: Any) -> Callable[[T], T]:
    """A flag and the environment variable of the same name."""
    variable = flag.removeprefix("--").replace("-", "_").upper()
    kwargs.setdefault("show_default", True)
    return click.option(flag, envvar=variable, show_envvar=True, **kwargs)  # type: ignore[return-value]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """A peer-to-peer image mirror for Nomad and Docker clusters, without a disk of its own."""


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"spegel-consul {__version__} (Python {platform.python_version()}, trio {trio.__version__})")


@cli.command()
@_option("--registry-addr", type=ADDRESS, default=":5000", help="Where clients and peers ask for content.")
@_option("--router-addr", type=ADDRESS, default=":5001", help="Where other routers connect.")
@_option("--metrics-addr", type=ADDRESS, default=":9090", help="Where metrics are read.")
@_option(
    "--advertise-addr",
    type=IP,
    default=None,
    help="IP address that peers and Consul are told.  [default: the one bound to, else that of the route out]",
)
@_option("--node-name", default=socket.gethostname, show_default="host name", help="Name of this node for people.")
@_option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/spegel"),
    help="Keeps this node's identity across restarts; nothing else is stored.",
)
@_option("--store", type=click.Choice([kind.value for kind in StoreKind]), default="containerd", help="What is served.")
@_option(
    "--containerd-sock",
    type=click.Path(path_type=Path),
    default=Path("/run/containerd/containerd.sock"),
    help="containerd's socket; also that of a Docker with the containerd image store.",
)
@_option("--containerd-namespace", default="moby", help="Docker: moby. Kubernetes: k8s.io. ctr, nerdctl: default.")
@_option(
    "--containerd-content-path",
    type=click.Path(path_type=Path),
    default=None,
    help="containerd's content directory.  [default: what containerd says]",
)
@_option("--layout-path", type=click.Path(path_type=Path), default=None, help="OCI image layout, for --store=layout.")
@_option(
    "--mirrored-registries",
    type=LIST,
    multiple=True,
    help="Registries to mirror, such as https://docker.io; several with commas.  [default: all]",
)
@_option(
    "--registry-filters",
    multiple=True,
    help="Regular expression of image names to leave alone, such as ':latest$'; may be repeated.",
)
@_option(
    "--mirror-resolve-timeout", type=DURATION, default="200ms", help="Longest wait for a first peer that has the key."
)
@_option(
    "--mirror-resolve-retries", type=click.IntRange(1, 20), default=3, help="How many peers are tried for one request."
)
@_option(
    "--verify",
    type=click.Choice(["on", "off"]),
    default="on",
    help="Whether blobs from peers are hashed while they pass, so that wrong bytes never reach the runtime.",
)
@_option(
    "--manifest-cache-size",
    type=click.IntRange(0),
    default=16 << 20,
    help="Bytes of manifests and other small contents that are kept in memory.",
)
@_option(
    "--bootstrap-kind",
    type=click.Choice([kind.value for kind in BootstrapKind]),
    default="consul",
    help="How the ring is found.",
)
@_option(
    "--static-bootstrap-peers",
    type=LIST,
    multiple=True,
    help="Peers to join through, such as /ip4/10.0.0.7/tcp/5001 or 10.0.0.7:5001; several with commas.",
)
@_option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="Least level.")
@_option("--log-format", type=click.Choice(["json", "console"]), default="json", help="For machines or for people.")
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
    )


def _flat(lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(item for each in lists for item in each)


@cli.command()
@click.option("--once", is_flag=True, help="Exit after the pull: 0 only if every layer came from a neighbour.")
@click.option("--port", type=click.IntRange(1024, 65000), default=5050, show_default=True, help="First port to use.")
@click.option("--size", type=click.IntRange(1, 4096), default=16, show_default=True, help="Size of the image in MiB.")
def dev(once: bool, port: int, size: int) -> None:
    """Show it working: three nodes on this machine, and an image that goes from one to another."""
    from spegel_consul import dev as demonstration

    raise SystemExit(trio.run(demonstration.run, once, port, size))


def main() -> None:
    """The console script. Exits 2 with one line for a wrong value, 1 with one line for a failed start."""
    try:
        status = cli.main(standalone_mode=False, prog_name="spegel-consul")
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        raise SystemExit(EXIT_USAGE) from None
    except click.UsageError as exc:
        click.echo(f"spegel-consul: {exc.format_message()}", err=True)
        raise SystemExit(EXIT_USAGE) from None
    except click.ClickException as exc:
        click.echo(f"spegel-consul: {exc.format_message()}", err=True)
        raise SystemExit(EXIT_FAILED) from None
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(128 + signal.SIGINT) from None
    raise SystemExit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
