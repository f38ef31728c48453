"""The platform of this machine, in the words of image indexes (``GOOS`` and ``GOARCH`` of Go).

A rule about the choice of a platform of an image belongs here.
"""

from __future__ import annotations

import platform

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386"}
_ARM = ("v7", "v6", "v5")  # variants, each of which runs what those after it run
OS = "linux"


def this_architecture() -> str:
    """The architecture of this machine, such as ``amd64``."""
    machine = platform.machine()
    return "arm" if machine.startswith("armv") else _ARCHITECTURES.get(machine, machine)


def this_variants() -> tuple[str, ...]:
    """The variants of the architecture that this machine runs, the preferred one first; "" is for none said.

    Source: containers/image, internal/pkg/platform/platform_matcher.go. A 32-bit system on a newer CPU counts as v7.
    """
    machine = platform.machine()
    if machine.startswith("armv"):
        own = min(f"v{machine[4:5]}", "v7")
        return (*_ARM[_ARM.index(own) :], "") if own in _ARM else ("",)
    return ("v8", "") if this_architecture() == "arm64" else ("",)


def this_platform() -> str:
    """The platform of this machine, such as ``linux/amd64``."""
    return f"{OS}/{this_architecture()}"
