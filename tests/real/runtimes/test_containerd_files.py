"""The real containerds read each configuration of the table as the rules say."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from lab import parts
from lab.containerd_files import FILES, VERSIONS

from spegel_consul.endpoints.check import Status
from spegel_consul.preflight.containerd_config import CriSettings, Place, checks_of
from spegel_consul.preflight.containerd_files import Unreadable, Version, read

pytestmark = pytest.mark.real


def dumped(daemon: str, path: Path) -> CriSettings | None:
    """What ``config dump`` prints, None if the daemon refuses the file."""
    argv = [parts.containerd(daemon), "--config", path, "config", "dump"]
    done = subprocess.run(argv, capture_output=True, cwd=path.parent, timeout=30, check=False)
    return None if done.returncode else CriSettings.of(tomllib.loads(done.stdout.decode()))


def brief(settings: CriSettings | None) -> str:
    if settings is None:
        return "refused"
    if not settings.enabled:
        return "disabled"
    words = {"mirrors": settings.inline_mirrors, "discards": settings.discard, "local": settings.local_pull}
    return " ".join([settings.config_path or "none", *(word for word, is_set in words.items() if is_set)])


@pytest.mark.parametrize("daemon", parts.CONTAINERDS)
def test_the_table_is_true(tmp_path: Path, daemon: str) -> None:
    """The plain tests compare the rules with the same table."""
    hosts = tmp_path / "certs.d"
    version = Version.parse(VERSIONS[daemon])
    for number, (name, files) in enumerate(FILES.items()):
        directory = tmp_path / str(number)
        directory.mkdir()
        path = files.write(directory)
        settings = dumped(daemon, path)
        assert brief(settings) == files.expected[list(VERSIONS).index(daemon)], name
        try:
            place = Place.find(path, read(path, version, directory).files, version)
        except Unreadable:
            assert settings is None, name
            continue
        assert settings is not None, name
        (check, *_) = checks_of(settings, version, hosts, place)
        if check.status is Status.OK or "mirrors" in check.says:
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
