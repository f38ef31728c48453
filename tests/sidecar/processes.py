"""Sidecars as processes, without any other program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def sidecar(data: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "spegel_consul", "registry", "--bootstrap-kind=static", "--skip-preflight"]
    argv += [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    return [*argv, f"--data-dir={data}", "--static-bootstrap-peers=127.0.0.1:1", *more]


def with_an_empty_layout(tmp_path: Path, silence: str) -> list[str]:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    return sidecar(tmp_path, f"--layout-path={tmp_path}", f"--hang-timeout={silence}")


def has_started(process: subprocess.Popen[bytes], tmp_path: Path) -> Callable[[], bool]:
    def started() -> bool:
        said = (tmp_path / "log").read_text()
        assert process.poll() is None, said
        return '"started"' in said

    return started


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
