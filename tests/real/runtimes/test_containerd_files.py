"""The real containerds read each configuration of the table as the rules say."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lab import parts, thorough
from lab.containerd_files import FILES, VERSIONS
from lab.hosts import mirror_toml, write_hosts
from lab.process import Process

from spegel_consul.endpoints.check import Status
from spegel_consul.preflight.containerd_config import CriSettings, Place, checks_of
from spegel_consul.preflight.containerd_files import Unreadable, Version, read

pytestmark = pytest.mark.real

"""Else one daemon for each test, because the plain tests have what all three said."""


def dumped(daemon: str, path: Path) -> CriSettings | None:
    """What ``config dump`` prints, None if the daemon refuses the file."""
    argv = [parts.containerd(daemon), "--config", path, "config", "dump"]
    done = subprocess.run(argv, capture_output=True, cwd=path.parent, timeout=30, check=False)
    return None if done.returncode else CriSettings.of(tomllib.loads(done.stdout.decode()))


def stated(daemon: str) -> Version:
    """The version that the program says of itself."""
    said = subprocess.run([parts.containerd(daemon), "--version"], capture_output=True, timeout=30, check=True)
    return Version.parse(said.stdout.decode().split()[2])


def brief(settings: CriSettings | None) -> str:
    if settings is None:
        return "refused"
    if not settings.enabled:
        return "disabled"
    words = {"mirrors": settings.inline_mirrors, "tls": settings.inline_tls}
    words |= {"discards": settings.discard, "local": settings.local_pull}
    return " ".join([settings.config_path or "none", *(word for word, is_set in words.items() if is_set)])


@pytest.mark.parametrize("daemon", parts.CONTAINERDS if thorough.ALL else ["21"])
def test_the_table_is_true(tmp_path: Path, daemon: str) -> None:
    """The plain tests compare the rules with the same table.

    A newer containerd in the place of one (`make newer`) is not in the table: its rules are compared with what it says.
    """
    hosts = tmp_path / "certs.d"
    version = stated(daemon)
    is_listed = version == Version.parse(VERSIONS[daemon])
    for number, (name, files) in enumerate(FILES.items()):
        directory = tmp_path / str(number)
        directory.mkdir()
        path = files.write(directory)
        settings = dumped(daemon, path)
        if is_listed:
            assert brief(settings) == files.expected[list(VERSIONS).index(daemon)], name
        try:
            found = read(path, version, directory)
        except Unreadable:
            assert settings is None, name
            continue
        assert brief(settings) == brief(CriSettings.of(found.document)), name
        place = Place.find(path, found.files, version)
        assert settings is not None, name
        (check, *_) = checks_of(settings, version, hosts, place)
        if check.status is Status.OK or "exclude" in check.says:
            continue
        text = "\n".join([place.file.read_text(), *check.fix.splitlines()])
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue  # the table is there, and is edited by hand
        place.file.write_text(text)
        after = dumped(daemon, path)
        assert after is not None, name
        assert after.config_path == str(hosts), name


CONFIG = """
version = 2
imports = ["{here}/conf.d/*.toml"]
root = "{here}/root"
state = "{here}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{here}/c.sock"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{here}/certs.d"
"""


@pytest.mark.parametrize("daemon", parts.CONTAINERDS if thorough.ALL else ["17"])
def test_preflight_asks_the_running_daemon(tmp_path: Path, daemon: str) -> None:
    """Its file has another name, a second one takes the CRI's table away, and there is a proxy with a password."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "other.toml").write_text(CONFIG.format(here=tmp_path))
    nvidia = (
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'
    )
    (tmp_path / "conf.d/nvidia.toml").write_text(f"version = 2\n{nvidia}")
    write_hosts(tmp_path / "certs.d", "_default", mirror_toml(["http://192.0.2.7:5000"]))
    env = {"HTTP_PROXY": "http://me:s3cret@192.0.2.1:3128", "NO_PROXY": "localhost"}
    argv = [parts.containerd(daemon), "--config", tmp_path / "other.toml"]
    process = Process("containerd", argv, log_path=tmp_path / "log", env={"PATH": "/usr/sbin:/usr/bin", **env})
    try:
        process.until((tmp_path / "c.sock").exists, timeout=20, what="containerd listens")
        words = [f"--containerd-sock={tmp_path}/c.sock", f"--containerd-registry-config-path={tmp_path}/certs.d"]
        words += ["--bootstrap-kind=static", "--docker-sock=/nowhere", "--runtime=containerd"]
        done = subprocess.run(
            [sys.executable, "-m", "spegel_consul", "preflight", "--json", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        process.kill9()
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    if daemon == "21":  # it merges the two
        assert checks["config-path"]["status"] == "ok"
    else:
        assert checks["config-path"]["status"] == "fail"
        assert checks["config-path"]["fix"].startswith(f"# {tmp_path}/conf.d/nvidia.toml")
    assert checks["containerd-proxy"]["status"] == "fail"
    assert "NO_PROXY=localhost,192.0.2.7" in checks["containerd-proxy"]["fix"].splitlines()
    assert "s3cret" not in done.stdout + done.stderr
