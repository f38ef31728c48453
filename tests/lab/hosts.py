"""hosts.toml of containerd, which Docker 28 reads too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_hosts(certs_d: Path, registry: str, toml: str) -> None:
    """Configure ``registry``, or all others as ``_default``. Read anew by the daemons at each pull."""
    directory = certs_d / registry
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(toml)


def mirror_toml(targets: Sequence[str], server: str | None = None) -> str:
    """Ask the mirrors ``targets`` in turn, then ``server``, which without a value is the registry itself."""
    lines = [f'server = "{server}"'] if server is not None else []
    # 1.x ignores a file without a host in it, and goes to the registry itself
    for target in targets or filter(None, [server]):
        lines += [f'[host."{target}"]', '  capabilities = ["pull", "resolve"]']
    return "\n".join(lines) + "\n"
