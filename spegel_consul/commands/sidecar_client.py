"""The client of the commands that ask a running sidecar, and their output.

The commands request documents from a sidecar's metrics port and print them: as tables and bars on a terminal, as plain
lines in a pipe, or unchanged with --json. Each outcome that a script must distinguish has its own exit code. A new exit
code, a rule about the requests and a rule about the output of all these commands belong here.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click

from spegel_consul import __version__
from spegel_consul.http import blocking_client
from spegel_consul.http.answer_bounds import AnswerRefused

if TYPE_CHECKING:
    from rich.console import Console

EXIT_UNREACHABLE = 3
EXIT_NOT_FOUND = 4
EXIT_NOT_READY = 5
_HOST = re.compile(r"[A-Za-z0-9_.:-]+\Z")
DEFAULT_PORT = 9090
DEFAULT_NODE = f"127.0.0.1:{DEFAULT_PORT}"
TIMEOUT = 10.0
CONNECT_TIMEOUT = 5.0
_LONGEST_ANSWER = 64 << 20
_LONGEST_LINE = 1 << 20
_LINE_TIMEOUT = 20.0
"""Longest time between two lines, in seconds; the node sends one each second, also while nothing happens."""


class Unreachable(click.ClickException):
    """No sidecar answers there."""

    exit_code = EXIT_UNREACHABLE


class NotFound(click.ClickException):
    """No node has the requested content."""

    exit_code = EXIT_NOT_FOUND


def base_url(text: str) -> str:
    """The URL of a metrics port, from ``host``, ``host:port``, ``[ipv6]:port`` or a URL. Raises ValueError."""
    text = text.strip().rstrip("/")
    if "://" not in text:
        if text.count(":") > 1 and not text.startswith("["):
            text = f"[{text}]"
        has_port = text.rpartition("]")[2].count(":") == 1
        text = f"http://{text}" if has_port else f"http://{text}:{DEFAULT_PORT}"
    try:
        url = urlsplit(text)
        host, _ = url.hostname or "", url.port
    except ValueError as exc:
        raise ValueError(f"{text!r} is not an address: {exc}") from None
    if url.scheme not in ("http", "https") or not _HOST.match(host):
        raise ValueError(f"{text!r} is not an address: expected host, host:port or [ipv6]:port")
    return text


def _node(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return base_url(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from None


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--node`` and ``--json``, and turn an answer with missing fields into a one-line error."""

    @functools.wraps(command)
    def asking(node: str, **given: Any) -> Any:
        try:
            return command(node=node, **given)
        except (KeyError, TypeError, AttributeError, IndexError):  # versions only add fields, so the node is older
            raise Unreachable(
                f"the answer of {node} lacks fields that version {__version__} expects: upgrade the node, or use --json"
            ) from None

    made = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(asking)
    return click.option(
        "--node",
        envvar="SPEGEL_NODE",
        show_envvar=True,
        default=DEFAULT_NODE,
        show_default=True,
        callback=_node,
        help="The sidecar to ask: the address of its metrics port.",
    )(made)


def get(node: str, path: str, *, method: str = "GET", timeout: float = TIMEOUT, **query: str) -> Any:
    """The document at ``path`` of a sidecar. Raises Unreachable, or click.ClickException with the answer's error.

    ``timeout`` (seconds) is for the whole answer, so a slow drip ends too.
    """

    try:
        with blocking_client.ask(
            method,
            f"{node}{path}",
            connect=min(timeout, CONNECT_TIMEOUT),
            silence=timeout,
            within=timeout,
            params=query,
        ) as answer:
            body = answer.body(_LONGEST_ANSWER)
    except blocking_client.AnswerLate:
        hangs(node, timeout)
    except AnswerRefused as exc:
        raise Unreachable(f"the server at {node} is no spegel-consul: {exc}") from None
    except blocking_client.NoAnswer as exc:
        unreachable(node, exc)
    return document(node, answer.status, body)


def reports(node: str, path: str, **query: str) -> Iterator[dict[str, Any]]:
    """Ask the node for work (POST), and yield its reports (NDJSON) as they arrive. Raises like :func:`get`.

    Once a report has arrived, the end of the connection or silence ends the reports. The caller has what arrived until
    then, and the last report does not say that the work is done.
    """
    status = 0
    reported = False
    try:
        with blocking_client.ask(
            "POST",
            f"{node}{path}",
            connect=CONNECT_TIMEOUT,
            silence=_LINE_TIMEOUT,
            params=query,
            headers={"Accept": "application/x-ndjson"},
        ) as answer:
            status = answer.status
            if status != 200:
                document(node, status, next(lines(node, answer), b""))
            for line in lines(node, answer):
                report = json.loads(line)
                reported = True
                yield report
    except (ValueError, RecursionError):
        not_ours(node, status)
    except blocking_client.AnswerLate:
        if not reported:
            hangs(node, _LINE_TIMEOUT)
    except blocking_client.NoAnswer as exc:
        if not reported:
            unreachable(node, exc)


def lines(node: str, answer: blocking_client.Answer) -> Iterator[bytes]:
    """The lines of an answer without content encoding, as they arrive. Raises Unreachable for a line over 1 MiB."""
    begun = b""
    for piece in answer.pieces():
        *whole, begun = (begun + piece).split(b"\n")
        yield from whole
        if len(begun) > _LONGEST_LINE:
            not_ours(node, answer.status)
    if begun:
        yield begun


def document(node: str, status: int, body: bytes) -> Any:
    """Parse a sidecar's answer. Raises like :func:`get`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError, MemoryError):
        not_ours(node, status)
    if status != 200:
        message = found.get("error") if isinstance(found, dict) else None
        if message is None:
            not_ours(node, status)
        raise click.ClickException(printable(str(message)))
    return found


def not_ours(node: str, status: int) -> NoReturn:
    _name_wrong_port(node, speaks_http=status > 0)
    raise Unreachable(f"the server at {node} is no spegel-consul, or one without this command (status {status})")


def _name_wrong_port(node: str, *, speaks_http: bool) -> None:
    """Raises Unreachable if it is known what answers at ``node`` instead of a metrics port."""
    from spegel_consul.commands import wrong_port

    if (found := wrong_port.name_of(node, speaks_http=speaks_http)) is not None:
        raise Unreachable(
            f"{node} is {found}: --node names the metrics port of a sidecar, {DEFAULT_PORT} unless --metrics-addr says"
            " another"
        )


def hangs(node: str, seconds: float) -> NoReturn:
    raise Unreachable(f"the sidecar at {node} accepted the connection but did not answer in {seconds:g} s: it hangs")


def printable(text: str) -> str:
    """``text`` without control characters for a terminal, because peers choose their names."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def shown(text: str) -> str:
    """``printable`` text, escaped for rich's markup."""
    from rich.markup import escape

    return escape(printable(text))


def unreachable(node: str, exc: blocking_client.NoAnswer) -> NoReturn:
    reason = str(exc) or type(exc).__name__
    if exc.answered:
        _name_wrong_port(node, speaks_http=False)
        raise Unreachable(f"the server at {node} is no spegel-consul: {reason}; name another one with --node") from None
    raise Unreachable(f"no sidecar answers at {node}: {reason}; name another one with --node") from None


def print_json(found: Any) -> None:
    """Indented for people on a terminal, one line for a program in a pipe."""
    click.echo(json.dumps(found, indent=2 if sys.stdout.isatty() else None))


def console() -> Console:
    """A console for standard output. Without a terminal no line is cut, because a pipe has no width."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else 10_000
    return Console(highlight=False, width=width, soft_wrap=False)


def print_hanging(lines: Iterable[tuple[str, str]]) -> None:
    """Print lines of a lead and a text; a terminal wraps a long text below the text, not below the lead."""
    if not sys.stdout.isatty():
        for lead, text in lines:
            click.echo(printable(lead + text))
        return
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    for lead, text in lines:
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(printable(lead)), Text(printable(text)))
        terminal.print(grid)
