"""The platform of this machine, in the words of image indexes (``GOOS`` and ``GOARCH`` of Go).

A rule about the choice of a platform of an image belongs here.
"""

from __future__ import annotations

import platform

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
OS = "linux"


def this_architecture() -> str:
    """The architecture of this machine, such as ``amd64``."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def this_platform() -> str:
    """The platform of this machine, such as ``linux/amd64``."""
    return f"{OS}/{this_architecture()}"
