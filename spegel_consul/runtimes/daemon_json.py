"""Edits of Docker's daemon.json: mirrors are added and taken out. No I/O.

The file belongs to people and to their configuration management. So it is edited as text: the positions of its
top-level members are found, a few characters are inserted, and all others stay. dockerd reads JSON without comments and
trailing commas; a file that dockerd would refuse is refused here too.

dockerd (26 and 28, ``dockerd --validate``) accepts more than the standard: a byte order mark, ``null`` in place of a
list, an object or the whole document, and a name given twice. Of such a name the last value counts; the members of an
object given twice are joined. So these files are kept, and the last member is edited.

The caller keeps ``Added``, the list of the additions. So they can be taken out of a file that was edited meanwhile. A
new key of daemon.json belongs here, with its removal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]
from typing import Any

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes.docker import OLD_DRIVERS
from spegel_consul.runtimes.hosts_toml import Unusable
from spegel_consul.runtimes.mirror_targets import Target

NAME = "daemon.json"
MIRRORS, INSECURE, FEATURES = "registry-mirrors", "insecure-registries", "features"
SNAPSHOTTER = "containerd-snapshotter"
STORAGE_DRIVER = "storage-driver"
FLAGS = {
    MIRRORS: ("registry-mirror",),
    INSECURE: ("insecure-registry",),
    FEATURES: ("feature",),
    STORAGE_DRIVER: ("storage-driver", "s"),
}
"""The flags of dockerd for these keys. Docker does not start with a key in its file and its flag."""
LOOPBACK = ("127.0.0.0/8", "::1/128")
"""What is insecure by default; from Docker 29.10 on only while daemon.json has no list (its release notes)."""
_SPACE = " \t\r\n"
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Added:
    """The additions to a file.

    ``snapshotter``: whether the feature was switched on; ``was_off``: whether the file said ``false`` before.
    """

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    snapshotter: bool = False
    was_off: bool = False


def added(
    existing: str, targets: Iterable[Target], *, snapshotter: bool, flags: Mapping[str, str] | None = None
) -> tuple[str, Added]:
    """``existing`` with ``targets`` as the first mirrors of docker.io, and the additions. Raises Unusable.

    A mirror without TLS that is not on loopback must also be in insecure-registries (Docker 26 and before). A list
    that was not there before gets the defaults too, because they would end with it.
    ``snapshotter`` switches the containerd image store on, because without it a node has no content for peers.
    ``flags``: the values of those keys that dockerd has from its ``FLAGS``.
    """
    flags = flags or {}
    mark, text = _marked(existing)
    if text.strip() in ("", "null"):
        text = "{}\n"
    document = _parsed(text)
    targets = list(targets)
    known = {str(url).rstrip("/") for url in _list(document, MIRRORS)}
    mirrors = tuple(target.url for target in targets if target.url not in known)
    allowed = _list(document, INSECURE)
    insecure = tuple(
        target.address
        for target in targets
        if target.is_plain and not target.is_loopback and target.address not in allowed
    )
    if insecure and document.get(INSECURE) is None:
        insecure += LOOPBACK
    features = document.get(FEATURES)
    if features is None:
        features = {}
    if not isinstance(features, dict):
        raise Unusable(f'"{FEATURES}" in it is not an object')
    switched = snapshotter and features.get(SNAPSHOTTER) is not True
    driver = document.get(STORAGE_DRIVER) or flags.get(STORAGE_DRIVER)
    if switched and driver in OLD_DRIVERS:
        raise Unusable(
            f"Docker's {STORAGE_DRIVER} is {driver}, with which the containerd image store pulls nothing: take"
            f' "{STORAGE_DRIVER}" out of it or --{STORAGE_DRIVER} out of the flags of dockerd, or give'
            " --containerd-snapshotter=false"
        )
    for key, is_new in ((MIRRORS, mirrors), (INSECURE, insecure), (FEATURES, switched)):
        if is_new and key in flags:
            flag = FLAGS[key][0]
            raise Unusable(
                f'dockerd has the flag --{flag}, and does not start with "{key}" in it too: move the flag there'
            )
    text = _with_items(text, MIRRORS, mirrors)
    text = _with_items(text, INSECURE, insecure)
    if switched:
        text = _with_feature(text)
    return mark + text, Added(mirrors, insecure, switched, switched and features.get(SNAPSHOTTER) is False)


def taken_out(text: str, before: Added) -> str:
    """``text`` without the additions ``before``. Raises Unusable."""
    mark, text = _marked(text)
    document = _parsed(text)
    for key, items in ((MIRRORS, before.mirrors), (INSECURE, before.insecure)):
        listed = _list(document, key)
        if any(item in items for item in listed):
            left = [item for item in listed if item not in items]
            text = _replaced(text, key, left) if left or _members(text)[0][key].is_repeated else _removed(text, key)
    features = document.get(FEATURES)
    if before.snapshotter and isinstance(features, dict) and SNAPSHOTTER in features:
        rest = {name: value for name, value in features.items() if name != SNAPSHOTTER}
        if before.was_off:
            text = _with_feature(text, on=False)
        else:
            is_repeated = _members(text)[0][FEATURES].is_repeated
            text = _replaced(text, FEATURES, rest) if rest or is_repeated else _removed(text, FEATURES)
    return mark + text


def _marked(text: str) -> tuple[str, str]:
    """The byte order mark of ``text``, or nothing, and the rest."""
    return (_MARK, text[1:]) if text.startswith(_MARK) else ("", text)


def _parsed(text: str) -> dict[str, Any]:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            before = found.get(name)
            joined = isinstance(before, dict) and isinstance(value, dict)
            found[name] = {**before, **value} if joined else value  # type: ignore[dict-item]
        return found

    def constant(name: str) -> Any:
        raise Unusable(f"it is not JSON: dockerd does not take {name} for a number")

    try:
        document = json.loads(text, object_pairs_hook=members, parse_constant=constant)
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno}"
        raise Unusable(
            f"it is not JSON: {exc.msg} at {where}; dockerd takes neither comments nor trailing commas"
        ) from None
    except RecursionError:
        raise Unusable("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise Unusable("it is not a JSON object")
    return document


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unusable(f'"{key}" in it is not a list')
    return value


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an object: the offsets of its name's start, its value's start and its value's end.

    ``is_repeated``: whether the object has the name before too; this is the last one, which counts.
    """

    start: int
    value: int
    end: int
    is_repeated: bool = False


def _members(text: str, at: int = 0) -> tuple[dict[str, _Member], int, int]:
    """The last member of each name in the object at or after ``at``, in order, and the offsets of its braces.

    ``text`` is valid.
    """
    opening = at = text.index("{", at)
    found: dict[str, _Member] = {}
    at = _after_space(text, at + 1)
    while text[at] != "}":
        start = at
        name, at = scanstring(text, at + 1)
        value = _after_space(text, text.index(":", at) + 1)
        _, at = JSONDecoder().raw_decode(text, value)
        is_repeated = found.pop(name, None) is not None  # taken out, because the order is that of the last ones
        found[name] = _Member(start, value, at, is_repeated)
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    return found, opening, at


def _after_space(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _with_items(text: str, key: str, items: tuple[str, ...]) -> str:
    """``text`` with ``items`` before those of the list ``key``."""
    if not items:
        return text
    members, _, _ = _members(text)
    if key not in members:
        return _with_member(text, key, json.dumps(list(items)))
    if text[members[key].value] != "[":  # null
        return _replaced(text, key, list(items))
    first = text.index("[", members[key].value) + 1
    content = _after_space(text, first)
    if text[content] == "]":
        return text[:first] + ", ".join(map(json.dumps, items)) + text[content:]
    gap = text[first:content]
    return text[:content] + "".join(f"{json.dumps(item)},{gap or ' '}" for item in items) + text[content:]


def _with_feature(text: str, *, on: bool = True) -> str:
    members, _, _ = _members(text)
    if FEATURES not in members:
        return _with_member(text, FEATURES, json.dumps({SNAPSHOTTER: on}))
    if text[members[FEATURES].value] != "{":  # null
        return _replaced(text, FEATURES, {SNAPSHOTTER: on})
    features, _, _ = _members(text, members[FEATURES].value)
    if SNAPSHOTTER in features:
        place = features[SNAPSHOTTER]
        return text[: place.value] + json.dumps(on) + text[place.end :]
    return _with_member(text, SNAPSHOTTER, json.dumps(on), members[FEATURES].value)


def _with_member(text: str, key: str, value: str, at: int = 0) -> str:
    """``text`` with a new last member in the object at ``at``, spaced like the member before it."""
    members, opening, closing = _members(text, at)
    member = f"{json.dumps(key)}: {value}"
    if not members:
        inside = f"\n  {member}\n" if at == 0 else member
        return text[: opening + 1] + inside + text[closing:]
    last = list(members.values())[-1]
    gap = text[len(text[: last.start].rstrip(_SPACE)) : last.start]  # the spaces after the brace or comma
    return text[: last.end] + "," + (gap or " ") + member + text[last.end :]


def _replaced(text: str, key: str, value: Any) -> str:
    place = _members(text)[0][key]
    return text[: place.value] + json.dumps(value) + text[place.end :]


def _removed(text: str, key: str) -> str:
    members, _, _ = _members(text)
    place = members[key]
    after = _after_space(text, place.end)
    if text[after] == ",":
        return text[: place.start] + text[_after_space(text, after + 1) :]
    return text[: place.start].rstrip(_SPACE).removesuffix(",") + text[place.end :]
