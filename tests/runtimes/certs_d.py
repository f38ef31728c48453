# A node's certs.d as somebody left it, and what our two commands make of it.

"""The directories that the tests of this room start from."""

from __future__ import annotations

import os
from pathlib import Path

from spegel_consul.runtimes.backup import BACKUP, ConfigDirectory
from spegel_consul.runtimes.configure import plan_hosts
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import Registry, Target

OLD = 'server = "https://ghcr.io"\n\n[host."http://cache"]\n'
MIRRORING = Mirroring((Target("http://10.0.0.7:5000"),))
OTHER = Mirroring((Target("http://10.0.0.8:5000"),))
REGISTRIES = [Registry("_default"), Registry("docker.io"), Registry("ghcr.io"), Registry("quay.io")]

Tree = dict[str, tuple[object, ...]]


def tree(root: Path) -> Tree:
    """All that is below ``root``: kinds, modes, owners, times of files, content."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        what: object
        if path.is_symlink():
            what = path.readlink()
        elif path.is_dir():
            what = None
        else:
            what = (path.read_bytes(), info.st_mtime_ns)
        found[str(path.relative_to(root))] = (oct(info.st_mode), info.st_uid, info.st_gid, what)
    return found


def before_us(root: Path) -> Path:
    """A node's certs.d with a file of special mode, owner and time, a link, and a directory of certificates."""
    base = root / "containerd/certs.d"
    for name in ("ghcr.io", "quay.io", "docker.io"):
        (base / name).mkdir(parents=True)
    (base / "ghcr.io/hosts.toml").write_text(OLD)
    (base / "ghcr.io/hosts.toml").chmod(0o640)
    os.utime(base / "ghcr.io/hosts.toml", (1e9, 1e9))
    if os.geteuid() == 0:
        os.chown(base / "ghcr.io/hosts.toml", 7, 8)
    (base / "ghcr.io/ca.crt").write_text("certificate")
    (root / "managed.toml").write_text('[host."http://managed"]\n')
    (base / "quay.io/hosts.toml").symlink_to("../../../managed.toml")
    (base / "docker.io/ca.crt").write_text("certificate")
    return base


def configure(base: Path, mirroring: Mirroring = MIRRORING, registries: list[Registry] = REGISTRIES) -> list[str]:
    plan = plan_hosts(base, registries, mirroring, keep_existing=True)
    return list(plan.directory.write(plan.files))


def cleanup(base: Path) -> list[str]:
    return list(ConfigDirectory(base).restore())


def written(base: Path) -> dict[str, str]:
    return {
        str(path.relative_to(base)): path.read_text()
        for path in sorted(base.glob("*/hosts.toml"))
        if path.parent.name != BACKUP
    }
