"""The hosts.toml files below a runtime's directory, as the runtime reads them. Their edits are those of hosts_toml.

A new question about files that exist belongs here.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from spegel_consul.disk import foreign_files


def files(base: Path) -> list[Path]:
    """The hosts.toml files that a runtime reads, that of _default first, because it is for most registries."""
    found = base.glob("*/hosts.toml") if os.path.isdir(base) else ()  # noqa: PTH112  # unlike Path's, it never raises
    return sorted(
        (file for file in found if file.parent.name != "_backup"),
        key=lambda file: (file.parent.name != "_default", file),
    )


def capabilities(file: Path) -> set[str]:
    """The capabilities of all hosts of a file; none are known of a file that can't be read."""
    try:
        hosts = tomllib.loads(foreign_files.read(file, foreign_files.CONFIG_SIZE).decode()).get("host", {})
        return {each for host in hosts.values() for each in host.get("capabilities", ())}
    except (OSError, ValueError, TypeError, AttributeError):
        return set()
