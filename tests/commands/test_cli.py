"""The command line as a process: exit codes, and what a user reads on standard error."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.cli_commands import as_process, command

from spegel_consul import __version__, cli
from spegel_consul.http.server.listen import ListenAddress
from spegel_consul.join.bootstrap_kind import BootstrapKind
from spegel_consul.sidecar.settings import Settings


def spegel(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return as_process(*arguments, env={**os.environ, **(env or {})})


def test_version() -> None:
    done = spegel("version")
    assert done.returncode == 0
    assert done.stdout == f"spegel-consul {__version__} (Python {platform.python_version()}, trio {trio.__version__})\n"
    assert spegel("--version").stdout == done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_summary_is_the_first_sentence_of_the_help(name: str) -> None:
    assert cli.COMMANDS[name].summary == command(name).get_short_help_str(limit=1000)
    assert command(name).name == name


def test_names_and_flags_are_completed() -> None:
    def completed(words: str, at: int) -> list[str]:
        asked = {"_SPEGEL_CONSUL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return spegel(env=asked).stdout.split()

    assert completed("spegel-consul cl", 1) == ["plain,cleanup", "plain,cleanup-wait"]
    assert "plain,--node" in completed("spegel-consul status --", 2)


def test_help_names_every_flag_and_variable() -> None:
    done = spegel("registry", "--help")
    assert done.returncode == 0
    for name in (
        "registry-addr",
        "router-addr",
        "metrics-addr",
        "containerd-sock",
        "containerd-namespace",
        "containerd-content-path",
        "data-dir",
        "mirrored-registries",
        "registry-filters",
        "mirror-resolve-timeout",
        "mirror-resolve-retries",
        "bootstrap-kind",
        "static-bootstrap-peers",
        "advertise-addr",
        "layout-path",
        "log-level",
        "log-format",
    ):
        assert f"--{name}" in done.stdout
        assert name.replace("-", "_").upper() in done.stdout


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        (["--registry-addr", "5000"], {}, "'--registry-addr'"),
        (["--router-addr", "::1:5001"], {}, "write IPv6 in brackets"),
        ([], {"METRICS_ADDR": "nonsense"}, "METRICS_ADDR"),
        (["--mirror-resolve-timeout", "20"], {}, "not a duration"),
        (["--mirror-resolve-retries", "0"], {}, "'--mirror-resolve-retries'"),
        (["--advertise-addr", "node7"], {}, "'node7' is neither an IP address nor an interface"),
        (["--advertise-addr", "0.0.0.0"], {}, "not an address that a peer can connect to"),
        (["--mirrored-registries", "https://docker.io/v2"], {}, "must look like https://docker.io"),
        (["--registry-filters", "("], {}, "is not a regular expression"),
        (["--store", "layout"], {}, "--store"),
        (["--bootstrap-kind", "static"], {}, "needs --static-bootstrap-peers"),
        (["--bootstrap-kind=static", "--static-bootstrap-peers=nonsense"], {}, "bootstrap peer 'nonsense'"),
        (["--bootstrap-kind=consul,dsn"], {}, "'dsn' is not one of consul, catalog"),
        (["--bootstrap-kind="], {}, "--bootstrap-kind: none given"),
        ([], {"BOOTSTRAP_KIND": "http"}, "needs --http-bootstrap-url"),
        (["--bootstrap-kind=dns"], {}, "needs --dns-bootstrap-domain"),
        (["--bootstrap-kind=file"], {}, "needs --bootstrap-file"),
        (["--bootstrap-kind=http", "--http-bootstrap-url=10.0.0.7:9090/id"], {}, "is not a URL"),
        (
            ["--bootstrap-kind=http", "--http-bootstrap-url=https://a/id", "--http-bootstrap-cert-dir=/nowhere"],
            {},
            "/nowhere has neither ca.crt nor tls.crt",
        ),
        (["--dns-bootstrap-server", ":53"], {}, "is not a DNS server"),
        (["--bootstrap-kind=nomad-var", "--nomad-variable=a b"], {}, "is not the path of a Nomad variable"),
        (["--bootstrap-kind=nomad-var"], {"NOMAD_ADDR": "nomad:4646"}, "NOMAD_ADDR"),
        ([], {"CONSUL_HTTP_ADDR": "ftp://consul"}, "CONSUL_HTTP_ADDR"),
        ([], {"CONSUL_HTTP_SSL": "yes"}, "CONSUL_HTTP_SSL"),
        (["--peer-policy=catalog", "--consul-service=off"], {}, "--peer-policy=catalog needs Consul's catalog"),
        (
            ["--peer-tls=require", "--bootstrap-kind=dns", "--dns-bootstrap-domain=a"],
            {},
            "needs certificates: of Consul",
        ),
        (["--peer-tls=on"], {}, "is not one of"),
        (["--runtime-addr=here"], {}, "--runtime-addr"),
        (["--tls-cert-file", "a.pem"], {}, "--tls-key-file must be given together"),
        ([], {"TLS_CA_FILE": "ca.pem"}, "need --tls-cert-file"),
        (["--unknown"], {}, "--unknown"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_2(
    arguments: list[str],
    env: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["spegel-consul", "registry", *arguments])
    monkeypatch.setattr("spegel_consul.sidecar.watchdog.become_guarded", lambda silence: pytest.fail("it starts"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert_one_line(*capfd.readouterr(), expected)


def test_a_wrong_value_ends_the_process() -> None:
    done = spegel("registry", "--registry-addr", "5000")
    assert done.returncode == 2
    assert_one_line(done.stdout, done.stderr, "'--registry-addr'")


def assert_one_line(out: str, err: str, expected: str) -> None:
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("spegel-consul: ")
    assert expected in err


def test_an_unusable_data_dir_is_one_line_and_exit_1(tmp_path: Path) -> None:
    (tmp_path / "private.key").write_text("garbage")
    done = spegel("registry", "--data-dir", str(tmp_path), "--advertise-addr", "10.0.0.7")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path / "private.key") in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tls-cert-file=no.pem", "--tls-key-file=no-key.pem"], "no.pem can't be read: No such file"),
        (["--basic-auth-file=nobody"], "nobody can't be read: No such file"),
    ],
)
def test_files_that_are_not_there_are_one_line_and_exit_1(tmp_path: Path, flags: list[str], expected: str) -> None:
    done = spegel("registry", f"--data-dir={tmp_path}", "--advertise-addr=10.0.0.7", "--registry-addr=:0", *flags)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr


def test_no_command_shows_the_help() -> None:
    done = spegel()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    taken: list[Settings] = []

    def run(function: Any, settings: Settings) -> None:
        taken.append(settings)

    monkeypatch.setattr("trio.run", run)
    monkeypatch.setattr("spegel_consul.sidecar.watchdog.become_guarded", lambda silence: -1)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    cli.cli.main(["registry", *arguments], standalone_mode=False)
    return taken[0]


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parsed(monkeypatch)
    assert settings.registry_addr == ListenAddress("", 5000)
    assert settings.router_addr == ListenAddress("", 5001)
    assert settings.metrics_addr == ListenAddress("", 9090)
    assert settings.containerd_sock is None  # wherever one is found
    assert settings.containerd_namespaces == ("moby", "k8s.io", "default", "nomad")
    assert settings.containerd_content_path is None
    assert settings.bootstrap.kinds == (BootstrapKind.CONSUL,)
    assert settings.layout_path is None
    assert settings.consul is not None
    assert settings.mirror.attempts == 3
    assert settings.images.accepts("docker.io/library/nginx:latest")
    assert settings.hang_timeout == 10.0
    assert settings.heartbeat == -1


def test_without_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(monkeypatch, "--hang-timeout=0").heartbeat is None


def test_lists_from_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORED_REGISTRIES", "https://docker.io, ghcr.io")
    monkeypatch.setenv("STATIC_BOOTSTRAP_PEERS", "10.0.0.7:5001,/ip4/10.0.0.8/tcp/5001")
    settings = parsed(
        monkeypatch,
        "--bootstrap-kind=static",
        "--registry-filters=:latest$",
        "--registry-filters=a{1,2}",
        "--mirror-resolve-timeout=1.5s",
    )
    assert settings.images.registries == {"docker.io", "ghcr.io"}
    assert [pattern.pattern for pattern in settings.images.excluded] == [":latest$", "a{1,2}"]
    assert settings.bootstrap.static_peers == ("10.0.0.7:5001", "/ip4/10.0.0.8/tcp/5001")
    assert settings.mirror.resolve_timeout == 1.5
    assert settings.consul is None
