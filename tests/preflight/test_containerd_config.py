from pathlib import Path

import pytest

from spegel_consul.endpoints.check import Check, Status
from spegel_consul.preflight.containerd_config import CriSettings, Place, checks_of
from spegel_consul.preflight.containerd_files import Unreadable, Version, read

HOSTS = Path("/etc/containerd/certs.d")

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


def judged(tmp_path: Path, text: str, version: str, hosts: Path = HOSTS) -> dict[str, Check]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    daemon = Version.parse(version)
    found = read(path, daemon)
    place = Place.find(path, found.files, daemon)
    return {check.name: check for check in checks_of(CriSettings.of(found.document), daemon, hosts, place)}


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


@pytest.mark.parametrize(
    "text", ["plugins = 3", "[plugins]\n'io.containerd.grpc.v1.cri' = 1", "disabled_plugins = 1", ""]
)
def test_odd_files_are_no_trouble(tmp_path: Path, text: str) -> None:
    assert judged(tmp_path, text, "odd")["config-path"].status is Status.FAIL


def test_what_is_not_toml_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[")
    with pytest.raises(Unreadable, match=r"config\.toml can't be read"):
        read(tmp_path / "config.toml", Version())
    assert read(tmp_path / "absent.toml", Version()).document == {}


def test_one_directory_by_many_names(tmp_path: Path) -> None:
    hosts, link = tmp_path / "certs.d", tmp_path / "link"
    hosts.mkdir()
    link.symlink_to(hosts)
    for path in (f"{hosts}/", f"{tmp_path}/./certs.d", f"{link}", f"{link}/", f"/elsewhere:{link}/"):
        text = OLD.format(path=f'config_path = "{path}"', discard="false")
        assert judged(tmp_path, text, "1.7.24", hosts)["config-path"].status is Status.OK, path
    text = OLD.format(path='config_path = ":"', discard="false")
    assert judged(tmp_path, text, "1.7.24", hosts)["config-path"].status is Status.FAIL


@pytest.mark.parametrize(("template", "version"), [(OLD, "1.7.24"), (NEW, "2.1.9")])
def test_both_ways_to_name_mirrors_keep_the_cri_from_starting(tmp_path: Path, template: str, version: str) -> None:
    both = f'config_path = "{HOSTS}"\n    mirrors."docker.io".endpoint = ["https://cache"]'
    check = judged(tmp_path, template.format(path=both, discard="false", local="false"), version)["config-path"]
    assert check.status is Status.FAIL
    assert "does not start" in check.says


TLS = 'configs."reg.example.com".tls.ca_file = "/etc/ssl/corp.pem"'


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "odd"])
def test_certificates_in_the_configuration_keep_the_cri_of_1_from_starting(tmp_path: Path, version: str) -> None:
    both = OLD.format(path=f'config_path = "{HOSTS}"\n    {TLS}', discard="false")
    check = judged(tmp_path, both, version)["config-path"]
    assert check.status is Status.FAIL
    assert "registry.configs.*.tls and config_path exclude each other, so the CRI does not start" in check.says
    alone = judged(tmp_path, OLD.format(path=TLS, discard="false"), version)["config-path"]
    assert alone.status is Status.FAIL
    assert f"move the certificates to {HOSTS}/<registry> first" in alone.says


def test_the_cri_of_2_starts_with_them(tmp_path: Path) -> None:
    path = f'config_path = "{HOSTS}"\n    {TLS}'
    for template in (OLD, NEW):
        text = template.format(path=path, discard="false", local="false")
        assert judged(tmp_path, text, "2.1.9")["config-path"].status is Status.OK


@pytest.mark.parametrize(
    ("option", "is_used"),
    [
        ("max_concurrent_downloads = 10", True),
        ("max_concurrent_downloads = 3", False),
        ("disable_snapshot_annotations = false", True),
        ("disable_snapshot_annotations = true", False),
        ("image_pull_with_sync_fs = true", True),
        ('registry.configs."reg.example.com".auth.auth = "eA=="', True),
        ('registry.auths."https://reg.example.com".auth = "eA=="', True),
    ],
)
def test_settings_that_the_transfer_service_lacks(tmp_path: Path, option: str, is_used: bool) -> None:
    """containerd then pulls with its older client, which reads a list."""
    images = '[plugins."io.containerd.cri.v1.images"]\n'
    path = '  registry.config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"\n'
    text = f"version = 3\n{images}  {option}\n{path}"
    assert judged(tmp_path, text, "2.1.9")["config-path"].status is (Status.OK if is_used else Status.FAIL)
    text = f"version = 3\n{images}  {option}\n"
    assert judged(tmp_path, text, "2.2.2")["config-path"].status is (Status.OK if is_used else Status.WARN)
    check = judged(tmp_path, text, "2.2.2", Path("/opt/certs.d"))["config-path"]
    assert check.status is (Status.FAIL if is_used else Status.WARN)


def test_layers_that_are_thrown_away_need_the_older_client(tmp_path: Path) -> None:
    text = NEW.format(path=f'config_path = "{HOSTS}:/b"', discard="true", local="false")
    checks = judged(tmp_path, text, "2.1.9")
    assert (checks["config-path"].status, checks["discard-unpacked-layers"].status) == (Status.OK, Status.FAIL)


def test_the_lines_to_add_without_a_file(tmp_path: Path) -> None:
    for version, head in (("1.7.24", "version = 2"), ("2.1.9", "version = 3"), ("2.4.0", "version = 3")):
        place = Place.find(tmp_path / "config.toml", (), Version.parse(version))
        (check, _) = checks_of(CriSettings(), Version.parse(version), HOSTS, place)
        (tmp_path / "config.toml").write_text(check.fix)
        found = read(tmp_path / "config.toml", Version.parse(version))
        assert head in check.fix
        assert CriSettings.of(found.document).config_path == str(HOSTS)
