# Only the content store is there: no CRI, no snapshots, nothing that needs rights or modules of the kernel.

"""A containerd for what needs one, and processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_READY = 60.0  # seconds


@contextmanager
def containerd(binary: str, home: Path) -> Iterator[Path]:
    """An empty containerd with its content store only; the path of its socket."""
    home.mkdir()
    plugins = ["cri.v1.images", "cri.v1.runtime", "grpc.v1.cri", "internal.v1.opt", "nri.v1.nri"]
    plugins += [f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs", "erofs")]
    disabled = ", ".join(f'"io.containerd.{name}"' for name in plugins)
    socket = home / "c.sock"
    config = home / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = [{disabled}]\n'
        f'[grpc]\n  address = "{socket}"\n'
    )
    process = started([binary, "--config", str(config), "--log-level", "error"])
    try:
        until = time.monotonic() + _READY
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("containerd does not start")
            time.sleep(0.1)
        yield socket
    finally:
        end(process)


def started(command: Sequence[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
