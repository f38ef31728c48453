from pathlib import Path

import pytest

from spegel_consul.endpoints.check import Check, Status
from spegel_consul.preflight.containerd_config import CriSettings, Unreadable, checks_of, load

HOSTS, FILE = Path("/etc/containerd/certs.d"), Path("/etc/containerd/config.toml")

OLD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = {discard}
  [plugins."io.containerd.grpc.v1.cri".registry]
    {path}
"""
NEW = """
version = 3
[plugins."io.containerd.cri.v1.images"]
  discard_unpacked_layers = {discard}
  use_local_image_pull = {local}
  [plugins."io.containerd.cri.v1.images".registry]
    {path}
"""


def judged(tmp_path: Path, text: str, version: str) -> dict[str, Check]:
    (tmp_path / "config.toml").write_text(text)
    settings = CriSettings.of(load(tmp_path / "config.toml"))
    return {check.name: check for check in checks_of(settings, version, HOSTS, FILE)}


@pytest.mark.parametrize(
    ("version", "path", "local", "status"),
    [
        ("1.6.20", 'config_path = "/etc/containerd/certs.d"', "false", Status.OK),
        ("1.7.24", 'config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"', "false", Status.OK),
        ("1.7.24", "", "false", Status.FAIL),
        ("1.7.24", 'config_path = ""', "false", Status.FAIL),
        ("1.7.24", 'config_path = "/opt/certs.d"', "false", Status.FAIL),
        ("1.7.24", 'mirrors."docker.io".endpoint = ["https://cache"]', "false", Status.FAIL),
        ("2.1.9+unknown", 'config_path = "/etc/containerd/certs.d"', "false", Status.OK),
        ("2.1.9+unknown", 'config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"', "false", Status.FAIL),
        ("2.1.9+unknown", 'config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"', "true", Status.OK),
        ("v2.0.4", 'config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"', "false", Status.OK),
        ("2.2.1", "", "false", Status.WARN),
    ],
)
def test_config_path(tmp_path: Path, version: str, path: str, local: str, status: Status) -> None:
    template = OLD if version.startswith("1") else NEW
    check = judged(tmp_path, template.format(path=path, discard="false", local=local), version)["config-path"]
    assert check.status is status
    if status is not Status.OK:
        assert 'config_path = "/etc/containerd/certs.d"' in check.fix
        assert ("cri.v1.images" in check.fix) == (template is NEW)


@pytest.mark.parametrize(("template", "version"), [(OLD, "1.7.24"), (NEW, "2.1.9")])
def test_layers_that_are_thrown_away(tmp_path: Path, template: str, version: str) -> None:
    text = template.format(path="", discard="true", local="false")
    check = judged(tmp_path, text, version)["discard-unpacked-layers"]
    assert check.status is Status.FAIL
    table = check.fix.splitlines()[1]
    assert table in text
    assert "discard_unpacked_layers = false" in check.fix
    text = template.format(path="", discard="false", local="false")
    assert judged(tmp_path, text, version)["discard-unpacked-layers"].status is Status.OK


def test_a_disabled_cri_has_nothing_to_configure(tmp_path: Path) -> None:
    checks = judged(tmp_path, 'disabled_plugins = ["cri"]', "1.7.24")
    assert [check.status for check in checks.values()] == [Status.OK]


def test_imports_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/mirror.toml").write_text(OLD.format(path='config_path = "/x"', discard="false"))
    (tmp_path / "conf.d/self.toml").write_text('imports = ["../config.toml"]')
    (tmp_path / "config.toml").write_text('version = 2\nimports = ["conf.d/*.toml"]\n')
    assert CriSettings.of(load(tmp_path / "config.toml")).config_path == "/x"


@pytest.mark.parametrize(
    "text", ["plugins = 3", "[plugins]\n'io.containerd.grpc.v1.cri' = 1", "disabled_plugins = 1", ""]
)
def test_odd_files_are_no_trouble(tmp_path: Path, text: str) -> None:
    assert judged(tmp_path, text, "odd")["config-path"].status is Status.FAIL


def test_what_is_not_toml_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[")
    with pytest.raises(Unreadable, match=r"config\.toml can't be read"):
        load(tmp_path / "config.toml")
    assert load(tmp_path / "absent.toml") == {}
