"""The rules of containerd's versions, over the table that the real ones are asked too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab.containerd_files import FILES, VERSIONS, Files

from spegel_consul.endpoints.check import Status
from spegel_consul.preflight.containerd_config import CriSettings, Place, checks_of
from spegel_consul.preflight.containerd_files import MissingImport, Unreadable, Version, read

table = pytest.mark.parametrize("files", FILES.values(), ids=FILES)
daemons = pytest.mark.parametrize("daemon", VERSIONS)


def brief(document: dict[str, Any]) -> str:
    """In the words of the table."""
    settings = CriSettings.of(document)
    if not settings.enabled:
        return "disabled"
    words = {"mirrors": settings.inline_mirrors, "tls": settings.inline_tls}
    words |= {"discards": settings.discard, "local": settings.local_pull}
    return " ".join([settings.config_path or "none", *(word for word, is_set in words.items() if is_set)])


@daemons
@table
def test_the_rules(tmp_path: Path, files: Files, daemon: str) -> None:
    expected = files.expected[list(VERSIONS).index(daemon)]
    path, version = files.write(tmp_path), Version.parse(VERSIONS[daemon])
    if expected == "refused":
        with pytest.raises(Unreadable) as caught:
            read(path, version, tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    else:
        assert brief(read(path, version, tmp_path).document) == expected


@daemons
@table
def test_the_lines_to_add_are_for_the_file_that_decides(tmp_path: Path, files: Files, daemon: str) -> None:
    """Added where the check says, the daemon reads the directory, unless the table is there and must be edited."""
    hosts = tmp_path / "certs.d"
    path, version = files.write(tmp_path), Version.parse(VERSIONS[daemon])
    try:
        found = read(path, version, tmp_path)
    except Unreadable:
        return
    place = Place.find(path, found.files, version)
    check = next(iter(checks_of(CriSettings.of(found.document), version, hosts, place)))
    if check.status is Status.OK or "exclude" in check.says:
        return
    before = place.file.read_text()
    place.file.write_text("\n".join([before, *check.fix.splitlines()]))
    try:
        after = read(path, version, tmp_path)
    except Unreadable:
        assert check.fix.splitlines()[1] in before
    else:
        assert CriSettings.of(after.document).config_path == str(hosts)


@pytest.mark.parametrize(
    ("daemon", "text", "expected"),
    [
        ("2.3.0", 'version = 4\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/a"\n', "/a"),
        ("2.3.0", 'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/a"\n', "/a"),
        ("2.4.2", 'version = 3\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n', "/a"),
        ("2.4.2", 'version = 4\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n', "none"),
        ("2.3.0", '[plugins.cri.registry]\nconfig_path = "/a"\n', "/a"),
        ("2.3.0", 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n', "/a"),
        ("", 'version = 4\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/a"\n', "/a"),
        ("", 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n', "/a"),
    ],
)
def test_newer_and_unknown_daemons(tmp_path: Path, daemon: str, text: str, expected: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert brief(read(tmp_path / "config.toml", Version.parse(daemon)).document) == expected


def test_an_older_file_with_a_newer_one_of_23(tmp_path: Path) -> None:
    """2.3 brings each file to its newest version first, so the older first file keeps its settings."""
    (tmp_path / "b.toml").write_text('version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "x"\n')
    main = 'imports = ["b.toml"]\nversion = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n'
    (tmp_path / "config.toml").write_text(main)
    assert brief(read(tmp_path / "config.toml", Version(2, 3, 4)).document) == "/a"
    assert brief(read(tmp_path / "config.toml", Version(2, 2, 7)).document) == "none"


def test_a_missing_import_keeps_every_daemon_from_starting(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('version = 2\nimports = ["gone.toml"]\n')
    for text in VERSIONS.values():
        with pytest.raises(MissingImport, match=r"gone\.toml is imported and does not exist"):
            read(tmp_path / "config.toml", Version.parse(text))


@daemons
def test_files_that_import_each_other(tmp_path: Path, daemon: str) -> None:
    (tmp_path / "conf.d").mkdir()
    old = '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n'
    (tmp_path / "conf.d/self.toml").write_text(f'version = 2\nimports = ["../config.toml", "./self.toml"]\n{old}')
    (tmp_path / "config.toml").write_text(
        f'version = 2\nimports = ["conf.d/../conf.d/*.toml", "{tmp_path}//config.toml"]\n'
    )
    found = read(tmp_path / "config.toml", Version.parse(VERSIONS[daemon]), tmp_path)
    assert brief(found.document) == "/a"
    assert [file.path.name for file in found.files] == ["config.toml", "self.toml"]


def test_many_imports(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    for number in range(80):
        (tmp_path / f"conf.d/{number}.toml").touch()
    (tmp_path / "config.toml").write_text('version = 2\nimports = ["conf.d/*"]\n')
    with pytest.raises(Unreadable, match="more than 64"):
        read(tmp_path / "config.toml", Version(1, 7, 24))


def test_patterns_of_old_versions_relate_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text(
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path="/a"'
    )
    (tmp_path / "config.toml").write_text('version = 2\nimports = ["conf.d/*.toml"]\n')
    path = tmp_path / "config.toml"
    assert brief(read(path, Version(1, 6, 20), Path("/")).document) == "none"
    assert brief(read(path, Version(1, 6, 20), tmp_path).document) == "/a"
    assert brief(read(path, Version(1, 6, 29), Path("/")).document) == "/a"
    assert brief(read(path, Version(1, 7, 15), Path("/")).document) == "none"
    assert brief(read(path, Version(1, 7, 16), Path("/")).document) == "/a"


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.6.20~ds1", (1, 6, 20)), ("v2.1.9", (2, 1, 9)), ("2.1.9+unknown", (2, 1, 9)), ("2.4.0-beta.0", (2, 4, 0)),
     ("1.7", (1, 7, 0)), ("", (0, 0, 0)), ("odd", (0, 0, 0))],
)  # fmt: skip
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert Version.parse(text) == Version(*version)
