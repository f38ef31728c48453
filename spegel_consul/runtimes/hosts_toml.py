"""Edits of a registry's hosts.toml: the mirrors are put before the other hosts. No I/O.

The runtime asks hosts in the order of the file, and the keys before the first table belong to the registry itself. So
our hosts are inserted between the two, and the rest of the text stays. tomlkit finds the position. Then tomllib parses
the result and compares it with the expected document, because some forms of TOML can't be extended (an inline table,
dotted keys).

A directory without hosts.toml may hold certificates for the registry. The runtime loads them only while there is no
hosts.toml, so a new hosts.toml names them.

containerd 1.7 ignores a file with ``server`` and without a host, so a new file always has a host.

A new key of hosts.toml belongs here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import tomlkit
from tomlkit.exceptions import ParseError, TOMLKitError
from tomlkit.items import AoT, Comment, Table, Whitespace

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes.mirror_targets import Registry, Target

NAME = "hosts.toml"
_HEADER = '# Written by "spegel-consul configuration"; "spegel-consul cleanup" brings back what was here before.\n'
_DIAL_TIMEOUT = "200ms"


class Unusable(ValueError):
    """A file can't be changed as it is; the message says why, without its name."""


@dataclass(frozen=True, slots=True)
class Mirroring:
    """The mirrors to write. ``authorization``: value of the Authorization header that mirrors are sent.

    ``referrers``: whether mirrors are asked for signatures too; containerd 2.1 and Docker 28 refuse such a file.
    """

    targets: tuple[Target, ...]
    resolve_tags: bool = True
    authorization: str | None = None
    referrers: bool = False


def fresh(registry: Registry, mirroring: Mirroring, certificates: Iterable[str] = ()) -> str:
    """A new file. ``certificates``: names of files in its directory. Raises Unusable."""
    top = [f"server = {in_toml(registry.server)}\n"] if registry.server else []
    return _HEADER + "".join([*top, *_certificate_lines(certificates)]) + "\n" + _hosts(mirroring)


@contextmanager
def _shallow() -> Iterator[None]:
    """Raises RecursionError of either parser as Unusable."""
    try:
        yield
    except RecursionError:
        raise Unusable("it is nested too deeply") from None


@_shallow()
def prepended(existing: str, registry: Registry, mirroring: Mirroring) -> str:
    """``existing`` with our hosts before its own. Raises Unusable."""
    meant = parsed(existing)
    try:
        document = tomlkit.parse(existing)
    except ParseError as exc:
        raise Unusable(f"it is not TOML: {exc}") from None
    ours = {target.url for target in mirroring.targets}
    hosts = meant.get("host", {})
    if not isinstance(hosts, dict):
        raise Unusable('"host" in it is not a table')
    if taken := ours.intersection(hosts):
        try:
            for url in taken:
                document["host"].remove(url)
                del hosts[url]
            existing = tomlkit.dumps(document)
            document = tomlkit.parse(existing)
        except (AttributeError, TOMLKitError):  # other tables between those of hosts
            raise Unusable("its [host.…] tables do not follow one another, so a mirror can't be moved") from None
    at = _before_tables(document)
    head, tail = existing[:at], existing[at:]
    if registry.server and "server" not in meant:
        head = f"server = {in_toml(registry.server)}\n" + head
        meant["server"] = registry.server
    if head and not head.endswith("\n"):
        head += "\n"
    text = _HEADER + head + ("" if not head.strip() or head.endswith("\n\n") else "\n") + _hosts(mirroring)
    text += "\n" + tail if tail.strip() else ""
    _check(text, meant, mirroring)
    return text


@_shallow()
def replaced(existing: str, registry: Registry, mirroring: Mirroring) -> str:
    """``existing`` with our hosts instead of its own; other keys stay, comments do not. Raises Unusable."""
    kept = {key: value for key, value in parsed(existing).items() if key != "host"}
    return prepended(tomlkit.dumps(kept), registry, mirroring)


@_shallow()
def dropped(existing: str, mirroring: Mirroring) -> tuple[str, ...]:
    """The hosts that ``replaced`` takes out of ``existing``. Raises Unusable."""
    hosts = parsed(existing).get("host", {})
    ours = {target.url for target in mirroring.targets}
    return tuple(str(url) for url in hosts if url not in ours) if isinstance(hosts, dict) else ()


@_shallow()
def parsed(text: str) -> dict[str, Any]:
    """The document of a TOML file. Raises Unusable."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise Unusable(f"it is not TOML: {exc}") from None


def _before_tables(document: tomlkit.TOMLDocument) -> int:
    """Offset of the first table, or of the comment directly above it."""
    at = 0
    attached = 0  # length of the comment lines that end here
    for key, item in document.body:
        if isinstance(item, Table | AoT):
            return at - attached
        rendered = item.as_string()
        if key is not None:
            rendered = key.as_string() + key.sep + rendered + item.trivia.comment_ws + item.trivia.comment
            rendered = item.trivia.indent + rendered + item.trivia.trail
        at += len(rendered)
        attached = attached + len(rendered) if isinstance(item, Comment) else 0
        if isinstance(item, Whitespace) and "\n" in rendered:
            attached = 0
    return at


def _check(text: str, meant: dict[str, object], mirroring: Mirroring) -> None:
    try:
        got = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        got = {}
    hosts = got.pop("host", {})
    urls = [target.url for target in mirroring.targets]
    before = meant.get("host", {})
    assert isinstance(before, dict)
    rest = {key: value for key, value in meant.items() if key != "host"}
    if list(hosts) != urls + list(before) or got != rest or any(hosts[url] != before[url] for url in before):
        raise Unusable('its hosts are not written as [host."…"] tables, so none can be put before them')


def _hosts(mirroring: Mirroring) -> str:
    capabilities = ["pull", *["resolve"] * mirroring.resolve_tags, *["referrers"] * mirroring.referrers]
    tables = []
    for target in mirroring.targets:
        table = f"[host.{in_toml(target.url)}]\n"
        table += f"  capabilities = {in_toml(capabilities)}\n  dial_timeout = {in_toml(_DIAL_TIMEOUT)}\n"
        if mirroring.authorization is not None:
            table += f"  [host.{in_toml(target.url)}.header]\n    Authorization = {in_toml(mirroring.authorization)}\n"
        tables.append(table)
    return "\n".join(tables)


def _certificate_lines(names: Iterable[str]) -> list[str]:
    """The runtime's own pairing: NAME.crt is an authority, NAME.cert with NAME.key identifies the client.

    Raises Unusable.
    """
    names = sorted(names)
    authorities = [name for name in names if name.endswith(".crt")]
    pairs = [
        [name, key] for name in names if name.endswith(".cert") and (key := name.removesuffix("cert") + "key") in names
    ]
    for name in {*authorities, *(name for pair in pairs for name in pair)}:
        if any("\ud800" <= char <= "\udfff" for char in name):  # how Python spells bytes that are not UTF-8
            raise Unusable(f"the name of the certificate {name!r} beside it is not UTF-8, as TOML must be: rename it")
    lines = [f"ca = {in_toml(authorities)}\n"] if authorities else []
    return [*lines, f"client = {in_toml(pairs)}\n"] if pairs else lines


def in_toml(value: object) -> str:
    """A text, or a list of such, as TOML writes it."""
    # as JSON with its characters written out, but for one control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
