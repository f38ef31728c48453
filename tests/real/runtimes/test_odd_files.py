"""dockerd itself accepts each daemon.json of the table, before and after it was edited."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lab import parts
from lab.daemon_files import ODD

from spegel_consul.runtimes.daemon_json import added
from spegel_consul.runtimes.mirror_targets import Target

pytestmark = pytest.mark.real

TARGETS = [Target("http://10.0.0.7:5000"), Target("http://127.0.0.1:5000")]


@pytest.mark.parametrize("version", parts.DOCKERS)
def test_docker_accepts_them(tmp_path: Path, version: str) -> None:
    for name, text in ODD.items():
        for number, content in enumerate((text, added(text, TARGETS, snapshotter=True)[0])):
            path = tmp_path / "daemon.json"
            path.write_text(content)
            # without the proxy, whose program is beside an installed dockerd only
            argv = [parts.dockerd(version), "--validate", "--userland-proxy=false", "--config-file", path]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, f"{name}, {'after' if number else 'before'}: {done.stderr}"
