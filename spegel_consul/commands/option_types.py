"""Types of flag values, and flags with an environment variable of the same name.

Every flag is also an environment variable, because a Nomad job sets variables more easily than arguments. Flags and
variables have Spegel's names if they have Spegel's meaning. A new type of value belongs here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import click

from spegel_consul.consul.api.duration import parse_duration
from spegel_consul.http.server.listen import ListenAddress
from spegel_consul.join.bootstrap_kind import BootstrapKind
from spegel_consul.preflight.node_address import one_or_two
from spegel_consul.registry.mirror.tags.age_limits import AgeLimit
from spegel_consul.web.access.own_names import allowed_host

T = TypeVar("T")


class ConfigKind(Enum):
    """Values of ``--runtime``: the kinds of configuration that runtimes read."""

    AUTO = "auto"
    CONTAINERD = "containerd"
    DOCKER = "docker"
    DAEMON = "docker-daemon"
    PODMAN = "podman"
    CRIO = "crio"
    BUILDKIT = "buildkit"


class Parsed(click.ParamType[Any]):
    """A parameter that a function parses; the user reads the message of its ValueError."""

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


ADDRESS = Parsed("host:port", ListenAddress.parse)

ALL_BOOTSTRAP_KINDS = ", ".join(kind.value for kind in BootstrapKind)


def _kinds(text: str) -> tuple[BootstrapKind, ...]:
    names = [part for part in text.replace(",", " ").split() if part]
    try:
        return tuple(map(BootstrapKind, names))
    except ValueError:
        unknown = next(name for name in names if name not in [kind.value for kind in BootstrapKind])
        raise ValueError(f"{unknown!r} is not one of {ALL_BOOTSTRAP_KINDS}") from None


BOOTSTRAP_KINDS = Parsed("kind", _kinds)


def kinds_of(given: Iterable[tuple[BootstrapKind, ...]]) -> tuple[BootstrapKind, ...]:
    """Return the kinds of an option that may be repeated, each once. Raises ValueError if there is none."""
    kinds = tuple(dict.fromkeys(kind for each in given for kind in each))
    if not kinds:
        raise ValueError(f"--bootstrap-kind: none given, expected one of {ALL_BOOTSTRAP_KINDS}")
    return kinds


_SIZE = re.compile(r"(\d{1,15}) *(?:([KMGT])i?)?B?\Z", re.ASCII | re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _size(text: str) -> int:
    found = _SIZE.match(text.strip())
    if text.strip() == "all":
        return sys.maxsize
    if found is None:
        raise ValueError(f"{text!r} is not a size: give a number of bytes, 512KiB, 32MiB, 1GiB, or all")
    return int(found[1]) << _UNITS[(found[2] or "").upper()]


_LEAST, _MOST = 64 << 10, 1 << 40  # bytes per second; peers take a slower source for a silent one


def _rate(text: str) -> int:
    found = _SIZE.match(text.strip().removesuffix("/s"))
    if found is None or not found[2]:
        raise ValueError(
            f"{text!r} is not a rate: give bytes per second with a unit, such as 512KiB/s, 50MiB/s or 1GiB/s"
        )
    rate = int(found[1]) << _UNITS[found[2].upper()]
    if not _LEAST <= rate <= _MOST:
        raise ValueError(f"{text!r} is not between 64KiB/s and 1TiB/s; leave the flag out for no limit")
    return rate


def _age_limit(text: str) -> AgeLimit:
    expression, separator, duration = text.rpartition("=")
    pattern = None
    if separator:
        try:
            pattern = re.compile(expression)
        except re.error as exc:
            raise ValueError(f"{expression!r} is not a regular expression: {exc}") from None
    if not expression and separator:
        raise ValueError(f"{text!r} has no regular expression before the sign =: give a duration alone for all tags")
    try:
        return AgeLimit(pattern, None if duration == "off" else parse_duration(duration))
    except ValueError:
        message = f"{text!r} is no limit: give a duration such as 30m, REGEX=30m, 0 to ask upstream always, or off"
        raise ValueError(message) from None


SIZE = Parsed("size", _size)
RATE = Parsed("rate", _rate)
DURATION = Parsed("duration", parse_duration)
AGE_LIMIT = Parsed("age limit", _age_limit)
REACHABLE = Parsed("address", one_or_two)
FILE = click.Path(path_type=Path, dir_okay=False)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


LIST = Parsed("list", _list)
HOSTS = Parsed("list", lambda text: tuple(map(allowed_host, _list(text))))


def flat(lists: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All values of a repeated flag of type LIST, in order."""
    return tuple(item for each in lists for item in each)


def option(flag: str, **kwargs: Any) -> Callable[[T], T]:
    """A flag with the environment variable of the same name; ``--flag/--no-flag`` has that of ``--flag``."""
    variable = flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    kwargs.setdefault("show_default", True)
    return click.option(flag, envvar=variable, show_envvar=True, **kwargs)  # type: ignore[return-value]


def path_option(flag: str, default: str | None, *, help: str) -> Callable[[T], T]:
    """A flag whose value is a path."""
    return option(flag, type=click.Path(path_type=Path), default=Path(default) if default else None, help=help)


def together(*options: Callable[[T], T]) -> Callable[[T], T]:
    """Several flags as one decorator; help shows them in this order."""

    def add_all(command: T) -> T:
        for add in reversed(options):
            command = add(command)
        return command

    return add_all
