"""Dial-back: a peer tests whether it can connect to the node that asks.

A node can't test from inside whether peers reach its address. So it asks a peer, which opens a connection to the
address of the request, and closes it. The peer dials only that address, because a client can't forge it over TCP. The
peer sends and reads nothing on that connection, so a client learns only whether a port of its own machine is open.
Loopback is refused, because a connection within one machine does not test the network.

A rule about the addresses and ports that may be dialled belongs here.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import ssl
import urllib.parse

import trio

from spegel_consul.endpoints.check import Check, fail, ok, warn
from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import host_port, unmapped

PATH = "/dial-back"
_CONNECT_TIMEOUT = 1.0
_ASK_TIMEOUT = 3.0
_MOST_DIALS = 4  # concurrent
_PORT = re.compile(r"[0-9]{1,5}")


def add_to(app: PlainApp) -> None:
    """Answer ``GET /dial-back?port=5000`` with ``{"address", "port", "reached", "error"}``."""
    limiter = trio.Semaphore(_MOST_DIALS)

    async def dial_back(question: Question) -> Answer:
        port = question.args.get("port", "")
        host = _plain_address(question.client)
        if not (_PORT.fullmatch(port) and 0 < int(port) < 65536):
            return _json(400, {"error": "give your port, as in ?port=5000"})
        if host is None or host.is_loopback:
            return _json(400, {"error": "ask from another machine: loopback does not test the network"})
        try:
            limiter.acquire_nowait()
        except trio.WouldBlock:
            return _json(503, {"error": "busy: ask again in a moment"})
        try:
            error = await _dial(str(host), int(port))
        finally:
            limiter.release()
        return _json(200, {"address": str(host), "port": int(port), "reached": error is None, "error": error})

    app.add(PATH, dial_back)


@dataclass(frozen=True, slots=True)
class Peer:
    """The address of another node's registry."""

    host: str
    port: int
    contexts: tuple[ssl.SSLContext | None, ...] = (None,)
    """The contexts by which it is asked; the next one if it does not agree on TLS. None: in plain text."""


def unverified() -> ssl.SSLContext:
    """A context without certificates: the request has no secrets and the answer is only advice."""
    return ssl._create_unverified_context()  # noqa: S323


def ask(peer: Peer, address: str, port: int) -> Check:
    """Let ``peer`` dial the registry that is advertised as ``address`` and ``port``. Each request may take 3 s."""
    name = "dial-back"
    try:
        seen, reached, error = _asked_by_any(peer, address, port)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as exc:
        where = host_port(peer.host, peer.port)
        return warn(name, f"{where} could not be asked to connect to this node: {in_words(exc)}")
    if seen != address:
        return warn(
            name,
            f"{peer.host} sees this node as {seen}, but the advertised address is {address}",
            f"--advertise-addr {seen}   # or network_mode = host, if this runs in a container",
        )
    if not reached:
        return fail(
            name,
            f"{peer.host} can't connect to {host_port(address, port)} ({error}),"
            " so peers get no content from this node",
            f"let TCP port {port} in on {address}; 5001 is needed as well",
        )
    return ok(name, f"{peer.host} can connect to {host_port(address, port)}")


def _asked_by_any(peer: Peer, address: str, port: int) -> tuple[str, bool, object]:
    *first, last = peer.contexts
    for context in first:
        try:
            return _asked(peer, context, address, port)
        except ssl.SSLError:
            continue
    return _asked(peer, last, address, port)


def _asked(peer: Peer, context: ssl.SSLContext | None, address: str, port: int) -> tuple[str, bool, object]:
    source: tuple[str, int] | None = (address, 0)
    for _ in range(2):
        connection: http.client.HTTPConnection
        if context is not None:
            connection = http.client.HTTPSConnection(
                peer.host, peer.port, timeout=_ASK_TIMEOUT, source_address=source, context=context
            )
        else:
            connection = http.client.HTTPConnection(peer.host, peer.port, timeout=_ASK_TIMEOUT, source_address=source)
        try:
            connection.request("GET", f"{PATH}?{urllib.parse.urlencode({'port': port})}")
            with connection.getresponse() as answer:
                document = json.loads(answer.read(4096))
            if answer.status != 200:
                raise ValueError(str(document.get("error", f"it answers {answer.status}")))
            seen = str(ipaddress.ip_address(str(document["address"])))
            return seen, document["reached"] is True, document.get("error")
        except ssl.SSLError:
            raise
        except OSError:
            if source is None:
                raise
            source = None  # this machine does not have the address, as behind address translation
        finally:
            connection.close()
    raise AssertionError("not reached")


async def _dial(host: str, port: int) -> str | None:
    """None if a connection succeeds, else the reason."""
    try:
        with trio.fail_after(_CONNECT_TIMEOUT):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        return f"no answer within {_CONNECT_TIMEOUT:g} s"
    except OSError as exc:
        return in_words(exc.__cause__ or exc)
    await trio.aclose_forcefully(stream)
    return None


def _plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, IPv4 also if it arrived at an IPv6 socket; None if it is not an IP address."""
    try:
        return unmapped(ipaddress.ip_address(text))
    except ValueError:
        return None


def _json(status: int, document: dict[str, object]) -> Answer:
    return Answer(status, f"{json.dumps(document)}\n".encode(), "application/json")
