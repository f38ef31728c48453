"""Values of the command line: rates, image sizes, runtimes, mirror settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

MIB = 1 << 20
MIRRORS = ("none", "off", "on")
_RATE = re.compile(r"(\d+)(mbit|gbit)")
_IMAGE = re.compile(r"(?:(\d+)x)?(\d+)(KiB|MiB)")
_FACTOR = {"mbit": 1, "gbit": 1000, "KiB": 1 << 10, "MiB": MIB}


def rate(text: str) -> int:
    """``200mbit`` or ``1gbit``, as tc has them, in Mbit/s."""
    match = _RATE.fullmatch(text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 200mbit or 1gbit")
    return int(match[1]) * _FACTOR[match[2]]


def layers(text: str) -> list[int]:
    """``4x64MiB``, or several of such separated by commas, as sizes in bytes."""
    sizes: list[int] = []
    for part in text.split(","):
        match = _IMAGE.fullmatch(part)
        if match is None or not int(match[2]) or match[1] == "0":
            raise argparse.ArgumentTypeError(f"{part!r} is not layers such as 4x64MiB or 300KiB")
        sizes += [int(match[2]) * _FACTOR[match[3]]] * int(match[1] or 1)
    return sizes


def one_of(*names: str) -> Callable[[str], list[str]]:
    """A type for some of ``names``, separated by commas."""

    def parse(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in names]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(names)}")
        return given

    return parse
