# The commands for people ask a sidecar's metrics port and show what it says: tables and bars on a terminal, plain lines
# in a pipe, the document itself with --json.  One exit code for each thing that a script would want to tell apart.

"""What the commands that ask a running sidecar have in common."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click
import httpx
from rich.console import Console
from rich.markup import escape

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3
EXIT_NOT_FOUND = 4
EXIT_NOT_READY = 5
_HOST = re.compile(r"[A-Za-z0-9_.:-]+\Z")
DEFAULT_PORT = 9090
DEFAULT_NODE = f"127.0.0.1:{DEFAULT_PORT}"
TIMEOUT = 10.0


class Unreachable(click.ClickException):
    """No sidecar answers there."""

    exit_code = EXIT_UNREACHABLE


class NotFound(click.ClickException):
    """Nobody has what was asked for."""

    exit_code = EXIT_NOT_FOUND


def base_url(text: str) -> str:
    """Where a sidecar's metrics port is: ``host``, ``host:port``, ``[ipv6]:port`` or a URL. Raises ValueError."""
    text = text.strip().rstrip("/")
    if "://" not in text:
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"
        has_port = text.rpartition("]")[2].count(":") == 1
        text = f"http://{text}" if has_port else f"http://{text}:{DEFAULT_PORT}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as exc:
        raise ValueError(f"{text!r} is not an address: {exc}") from None
    if url.scheme not in ("http", "https") or not _HOST.match(url.host):
        raise ValueError(f"{text!r} is not an address: expected host, host:port or [ipv6]:port")
    return str(url).rstrip("/")


def _node(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return base_url(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from None


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--node`` and ``--json``."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)
    return click.option(
        "--node",
        envvar="SPEGEL_NODE",
        show_envvar=True,
        default=DEFAULT_NODE,
        show_default=True,
        callback=_node,
        help="The sidecar to ask: the address of its metrics port.",
    )(command)


def get(node: str, path: str, *, timeout: float = TIMEOUT, **query: str) -> Any:
    """The document at ``path`` of a sidecar. Raises Unreachable, or click.ClickException with what it says is wrong."""
    try:
        answer = httpx.get(f"{node}{path}", params=query, timeout=timeout, trust_env=False)
    except httpx.HTTPError as exc:
        unreachable(node, exc)
    return document(node, answer)


def document(node: str, answer: httpx.Response) -> Any:
    try:
        found = answer.json()
    except ValueError:
        raise Unreachable(f"what answers at {node} is no spegel-consul (status {answer.status_code})") from None
    if answer.status_code != 200:
        message = found.get("error") if isinstance(found, dict) else None
        if message is None:
            raise Unreachable(f"what answers at {node} is no spegel-consul (status {answer.status_code})")
        raise click.ClickException(printable(str(message)))
    return found


def printable(text: str) -> str:
    """``text`` without what a terminal would act on: peers choose their names."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def shown(text: str) -> str:
    """The same for a console, which takes markup."""
    return escape(printable(text))


def unreachable(node: str, exc: Exception) -> NoReturn:
    reason = str(exc) or type(exc).__name__
    raise Unreachable(f"no sidecar answers at {node}: {reason}; name another one with --node") from None


def print_json(found: Any) -> None:
    """Indented for people on a terminal, one line for a program in a pipe."""
    click.echo(json.dumps(found, indent=2 if sys.stdout.isatty() else None))


def console() -> Console:
    """Of standard output. Without a terminal nothing is cut off, since nobody can widen a pipe."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else 10_000
    return Console(highlight=False, width=width, soft_wrap=False)
