"""Redaction of secrets in lines of configuration files. No I/O.

A dry run is printed on screens and kept in logs, so no line of its diff may contain a password, not even an unchanged
line. The file is parsed to find the secrets, and each line with a part of one is cut after its key. Lines that could
hide a secret from this (an escape, a comment beside a header, a file that can't be parsed) are cut too.

A new table with secrets belongs here.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

_HIDDEN = "…"
_SECRET_TABLES = ("header", "proxies", "log-opts")
_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*{_NAME}(?:\s*\.\s*{_NAME})*\s*[=:](?=\s)")
_TABLE = re.compile(rf"\s*\[+\s*{_NAME}(?:\s*\.\s*{_NAME})*\s*\]+\s*(?:#.*)?")
_USER = re.compile(r"""(:\\?/\\?/)[^\s"]*@""")


def lines(text: str, *, is_json: bool = False) -> list[str]:
    """Lines of a hosts.toml or daemon.json, without values of headers, proxies, log drivers and users in URLs."""
    raw = text.splitlines()
    try:
        parsed = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_all) if is_json else tomllib.loads(text)
        secrets = set(_secrets(parsed, inside=False))
    except (ValueError, RecursionError):
        return [_cut(line, ()) if line.strip() else line for line in raw]
    found = []
    inside = False
    for line in raw:
        is_table = not is_json and _TABLE.fullmatch(line) is not None
        if is_table:
            inside = "header" in line.lower()
        hide = any(secret in line for secret in secrets) or (bool(secrets) and "\\" in line)
        if hide or (inside and not is_table and line.strip()):
            line = _cut(line, secrets)
        found.append(url(line))
    return found


def url(text: str) -> str:
    """A URL without its user and password."""
    return _USER.sub(rf"\1{_HIDDEN}@", text)


def _all(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with all values of a name that it has more than once, because each is in the text."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = [found[name], value] if name in found else value
    return found


def _cut(line: str, secrets: set[str] | tuple[()]) -> str:
    key = _KEY.match(line)
    if key is None or any(secret in key[0] for secret in secrets) or "\\" in key[0]:
        return line[: len(line) - len(line.lstrip())] + _HIDDEN
    return f"{key[0]} {_HIDDEN}"


def _secrets(value: Any, *, inside: bool) -> Iterator[str]:
    """Parts, each within one line, of all values below a table of secrets."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _secrets(below, inside=inside or name.lower() in _SECRET_TABLES)
    elif isinstance(value, list):
        for each in value:
            yield from _secrets(each, inside=inside)
    elif inside:
        yield from filter(None, (piece.strip() for piece in str(value).splitlines()))
