"""Edits of BuildKit's buildkitd.toml: mirrors are added and taken out. No I/O.

BuildKit reads one file, which belongs to people. So a list of mirrors is edited where it stands, missing tables are
appended, and the rest of the text stays. Then tomllib parses the result and compares it with the expected document,
because some forms of TOML can't be extended (an inline table, dotted keys).

BuildKit resolves names with containerd's library, which tells a mirror the registry (``ns=``). So a mirror is
``127.0.0.1:5000`` without a path: with ``127.0.0.1:5000/ghcr.io`` the registry would be named twice, and no
tag be found. HTTP instead of HTTPS is a key of the mirror's own table (util/resolver/resolver.go). There is no table
for all registries, and no setting for digests only.

The caller keeps ``Added``, the list of the additions. So they can be taken out of a file that was edited meanwhile. A
new key belongs here, with its removal.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes.clients.registries_conf import expanded
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable, parsed
from spegel_consul.runtimes.mirror_targets import Registry, Target

HEADER = '# Added by "spegel-consul configuration"; "spegel-consul cleanup" takes it out.\n'
_FORM = 'its registries are not written as [registry."…"] tables that a mirror can be added to'

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Added:
    """The additions to a file, by the names of its ``[registry."…"]`` tables.

    ``mirrors``: those that are new, ``dropped``: those that were left out for them. ``lists``: tables whose ``mirrors``
    is new; ``plain``: whose ``http`` is new; ``tables``: that are new. ``first``: whether the file had none before.
    """

    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    first: bool = False

    @classmethod
    def of_note(cls, note: Mapping[str, Any]) -> Added:
        """From its fields in a record, where tuples are lists."""
        mirrors, dropped = (
            {str(name): tuple(map(str, listed)) for name, listed in dict(note.get(key) or {}).items()}
            for key in ("mirrors", "dropped")
        )
        lists, plain, tables = (tuple(map(str, note.get(key) or ())) for key in ("lists", "plain", "tables"))
        return cls(mirrors, dropped, lists, plain, tables, note.get("first") is True)


def added(
    existing: str, registries: Iterable[Registry], mirroring: Mirroring, *, keep_existing: bool
) -> tuple[str, Added]:
    """``existing`` with ``mirroring`` for ``registries``, and the additions. Raises Unusable.

    ``keep_existing``: whether the mirrors are put before those of a table, or replace them.
    """
    before = parsed(existing)
    document = copy.deepcopy(before)
    known = _registries(before)
    ours = tuple(target.address for target in mirroring.targets)
    plain = [target.address for target in mirroring.targets if target.is_plain]
    mirrors: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, tuple[str, ...]] = {}
    http: list[str] = []
    for registry in mirrored(existing, registries, mirroring):
        listed = _list(known.get(registry.host, {}), registry.host)
        others = [mirror for mirror in listed if mirror not in ours]
        if others and not keep_existing:
            dropped[registry.host] = tuple(others)
            others = []
        if [*ours, *others] != listed:
            mirrors[registry.host] = ours
        _table(document, registry.host)["mirrors"] = [*ours, *others]
        if registry.server is not None and registry.server.startswith("http://"):
            http.append(registry.host)
    for name in dict.fromkeys([*http, *plain]):
        if known.get(name, {}).get("http", True) is not True:
            raise Unusable(f"its table of {name} has http = false, but {name} is asked without TLS: take that out")
        _table(document, name)["http"] = True
    tables = tuple(name for name in _registries(document) if name not in known)
    what = Added(
        mirrors,
        dropped,
        tuple(name for name in mirrors if "mirrors" not in known.get(name, {})),
        tuple(name for name in dict.fromkeys([*http, *plain]) if "http" not in known.get(name, {})),
        tables,
        "registry" not in before,
    )
    text = _edited(existing, document, [name for name in _registries(document) if name in known])
    if tables:
        text += "" if not text or text.endswith("\n") else "\n"
        text += ("\n" if text.strip() else "") + HEADER + "\n".join(_new(name, document) for name in tables)
    _check(text, document)
    return text, what


def mirrored(existing: str, registries: Iterable[Registry], mirroring: Mirroring) -> tuple[Registry, ...]:
    """``registries`` with ``_default`` replaced by registries that the file can name. Raises Unusable."""
    return expanded(registries, _mirrorable(_registries(parsed(existing)), mirroring))


def mirrors(text: str) -> dict[str, tuple[str, ...]]:
    """The URLs of the mirrors of each registry that has some. Raises Unusable."""
    known = _registries(parsed(text))
    found = {name: tuple(_url(mirror, known) for mirror in _list(table, name)) for name, table in known.items()}
    return {name: urls for name, urls in found.items() if urls}


def taken_out(text: str, what: Added) -> str:
    """``text`` without the additions ``what``. Raises Unusable."""
    text = text.replace(HEADER, "")
    document = parsed(text)
    known = _registries(document)
    for name in {*what.mirrors, *what.plain, *what.tables}.intersection(known):
        table = known[name]
        if "mirrors" in table and name in what.mirrors:
            left = [mirror for mirror in _list(table, name) if mirror not in what.mirrors[name]]
            left += [mirror for mirror in what.dropped.get(name, ()) if mirror not in left]
            table["mirrors"] = left
            if not left and name in what.lists:
                del table["mirrors"]
        if name in what.plain:
            table.pop("http", None)
        if not table and name in what.tables:
            del known[name]
    if what.first and not known:
        document.pop("registry", None)
    text = _edited(text, document, list(_registries(parsed(text))))
    _check(text, document)
    return text


def _registries(document: Document) -> dict[str, dict[str, Any]]:
    """The tables by name. Raises Unusable."""
    found = document.get("registry", {})
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        raise Unusable('"registry" in it is not a table of [registry."…"] tables')
    return found


def _mirrorable(known: Mapping[str, object], mirroring: Mirroring) -> list[str]:
    """The registries among the tables ``known``, some of which are of mirrors."""
    ours = [target.address for target in mirroring.targets]
    mirrors = {
        mirror.partition("/")[0]
        for table in known.values()
        if isinstance(table, dict) and isinstance(table.get("mirrors"), list)
        for mirror in table["mirrors"]
        if isinstance(mirror, str)
    }
    return [name for name in known if name not in mirrors.union(ours)]


def _url(mirror: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    host = mirror.partition("/")[0]
    plain = known.get(host, {}).get("http")
    if plain is None:
        try:
            plain = Target(f"http://{host}").is_loopback
        except ValueError:  # brackets that are no address
            plain = False
    return f"{'http' if plain else 'https'}://{mirror}"


def _table(document: Document, name: str) -> dict[str, Any]:
    table: dict[str, Any] = document.setdefault("registry", {}).setdefault(name, {})
    return table


def _list(table: Mapping[str, Any], name: str) -> list[str]:
    listed = table.get("mirrors", [])
    if not isinstance(listed, list) or not all(isinstance(mirror, str) for mirror in listed):
        raise Unusable(f"the mirrors of {name} in it are not a list of texts")
    return listed


def _edited(text: str, document: Document, names: Iterable[str]) -> str:
    """``text`` with the tables ``names`` as ``document`` has them, and without those that it has not."""
    wanted = document.get("registry", {})
    before = _registries(parsed(text))
    changed = [name for name in names if wanted.get(name) != before[name]]
    if not changed and "registry" in document:
        return text
    try:
        whole: Any = tomlkit.parse(text)
        for name in changed:
            table = whole["registry"][name]
            if name not in wanted and isinstance(table, InlineTable):
                del whole["registry"][name]
                continue
            for key in ("mirrors", "http"):
                _set(table, key, wanted.get(name, {}).get(key))
        headers: list[Document] = [{"registry": {name: {}}} for name in changed if name not in wanted]
        if "registry" not in document:
            headers.append({"registry": {}})
            if isinstance(whole.get("registry"), InlineTable):
                del whole["registry"]
        return _without_headers(tomlkit.dumps(whole), headers)
    except (TOMLKitError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        raise Unusable(_FORM) from None


def _without_headers(text: str, headers: Sequence[Document]) -> str:
    """``text`` without the header lines of empty tables, which mean ``headers``, and without a blank line before each.

    To tomlkit, the comments up to the next header are a part of the table, and would go with it.
    """
    kept: list[str] = []
    for line in text.split("\n"):
        if line.lstrip().startswith("[") and _meaning(line) in headers:
            if kept and not kept[-1].strip():
                kept.pop()
        else:
            kept.append(line)
    return "\n".join(kept)


def _meaning(line: str) -> Document:
    try:
        return tomllib.loads(line.strip())  # also without the CR of a file from Windows
    except tomllib.TOMLDecodeError:  # a line of a list
        return {}


def _set(table: Any, key: str, value: Any) -> None:
    if value is None:
        if key in table:
            del table[key]
    elif key not in table:
        table[key] = value
    elif isinstance(value, list):
        listed = table[key]
        for mirror in [mirror for mirror in listed if mirror not in value]:
            listed.remove(mirror)
        for number, mirror in enumerate(value):
            if number >= len(listed) or listed[number] != mirror:
                if mirror in listed:
                    listed.remove(mirror)
                listed.insert(number, mirror)


def _new(name: str, document: Document) -> str:
    keys = document["registry"][name]
    lines = [f"  {key} = {json.dumps(value)}\n" for key, value in keys.items()]
    return f"[registry.{json.dumps(name)}]\n" + "".join(lines)


def _check(text: str, meant: Document) -> None:
    try:
        got = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise Unusable(_FORM) from None
    if got != meant and repr(got) != repr(meant):  # a number that is none is not equal to itself
        raise Unusable(_FORM)
