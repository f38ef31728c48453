from __future__ import annotations

from pathlib import Path

import pytest

from spegel_consul.runtimes.configure import plan_daemon, plan_hosts
from spegel_consul.runtimes.hosts_toml import Mirroring
from spegel_consul.runtimes.mirror_targets import Registry, Target

MIRRORING = Mirroring((Target("http://10.0.0.7:5000"),))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "existing",
    [
        '[host."http://a"]\n[host."http://a".header]\n  authorization = "Bearer s3cret"\n',
        '[host."http://a"]\n[host."http://a".header]\n  # "X-Old" = "s3cret"\n  "X-Token" = ["s3cret"]\n',
        '[host."http://a"]\n[host."http://a".header]\n  X-Token = [\n    "s3cret==",\n    "s3cret2",\n  ]\n',
        '[host."http://a"]\n[host."http://a"."header"]\n  X-Token = """\ns3cret\nmore s3cret"""\n',
        '[host."http://a"]\n  header = { X-Token = "s3cret" }\n',
        '[host."http://a"]\n  header.X-Token = "s3cret"\n',
        '[host."http://a"]\n  "h\\u0065ader" = { X-Token = "s3cret" }\n',
        '[host."http://a"]\n  header = { X-Token = "s\\u0033cret", Y = "a\\\\s\\u0033cret" }\n',
        'server = "https://me:s3cret@ghcr.io"\n\n[host."http://me:s3cret@a"]\n  ca = "x"\n',
        '[header]\nX = "s3cret"\n',
    ],
)
def test_no_secret_of_hosts_toml_is_shown(tmp_path: Path, existing: str, keep: bool) -> None:
    (tmp_path / "ghcr.io").mkdir()
    (tmp_path / "ghcr.io/hosts.toml").write_text(existing)
    plan = plan_hosts(tmp_path, [Registry("ghcr.io")], MIRRORING, keep_existing=keep)
    shown = "\n".join(plan.diff()).replace(str(tmp_path), "")
    assert "10.0.0.7" in shown
    assert "cret" not in shown


@pytest.mark.parametrize(
    "existing",
    [
        '{\n  "proxies": {\n    "http-proxy": "http://me:s3cret@proxy:3128",\n    "no-proxy": "s3cret.lan"\n  }\n}\n',
        '{"proxies": {"https-proxy": "me:s3cret@proxy"}, "debug": true}',
        '{\n  "proxies": {\n    "http-proxy":\n      "http:\\/\\/me:s\\u0033cret@proxy"\n  }\n}\n',
        '{"log-opts": {"a": "s3cret"}, "log-opts": {"a": "x"}, "proxies": {"http-proxy": "s3cret", "http-proxy": "x"}}',
        '\ufeff{\n  "log-opts": {"splunk-token": "s3cret"},\n  "debug": true\n}',
        '{"log-opts": {"splunk-token": "s3cret"}, "log-driver": "splunk"}',
        '{\n  "registry-mirrors": [\n    "https://me:s3cret@cache.lan"\n  ]\n}\n',
    ],
)
def test_no_secret_of_daemon_json_is_shown(tmp_path: Path, existing: str) -> None:
    (tmp_path / "daemon.json").write_text(existing)
    shown = "\n".join(plan_daemon(tmp_path / "daemon.json", MIRRORING, snapshotter=True).diff()).replace(
        str(tmp_path), ""
    )
    assert shown
    assert "cret" not in shown


def test_a_secret_that_changes_is_a_change(tmp_path: Path) -> None:
    for number, password in enumerate(("Basic eDp5", "Basic eDp6")):
        mirroring = Mirroring(MIRRORING.targets, authorization=password)
        plan = plan_hosts(tmp_path, [Registry("ghcr.io")], mirroring, keep_existing=False)
        lines = list(plan.diff())
        assert "+    Authorization = …" in lines
        assert ("-    Authorization = …" in lines) is bool(number)
        list(plan.directory.write(plan.files))


def test_the_rest_is_shown(tmp_path: Path) -> None:
    text = '# the cache\nserver = "https://ghcr.io"\n\n[host."http://a"]\n  ca = "x"\n'
    text += '  [host."http://a".header]\n    A = "zzz"\n'
    (tmp_path / "ghcr.io").mkdir()
    (tmp_path / "ghcr.io/hosts.toml").write_text(text)
    lines = list(plan_hosts(tmp_path, [Registry("ghcr.io")], MIRRORING, keep_existing=True).diff())
    for line in (' server = "https://ghcr.io"', ' [host."http://a"]', '   ca = "x"', '+[host."http://10.0.0.7:5000"]'):
        assert line in lines
