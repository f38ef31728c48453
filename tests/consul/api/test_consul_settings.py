from __future__ import annotations

from pathlib import Path

import pytest

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.duration import format_duration, parse_duration
from spegel_consul.consul.api.token import TokenSource


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8500", "http://127.0.0.1:8500"),
        ("consul.example.com", "http://consul.example.com"),
        ("http://consul:8500/", "http://consul:8500"),
        ("https://gateway/consul", "https://gateway/consul"),
        ("https://gateway:8443/a/b/", "https://gateway:8443/a/b"),
        ("[::1]:8500", "http://[::1]:8500"),
        ("http://[::1]:8500", "http://[::1]:8500"),
        ("[fe80::1]", "http://[fe80::1]"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert ConsulSettings.from_env({"CONSUL_HTTP_ADDR": address}).base_url == url


def test_nothing_set() -> None:
    settings = ConsulSettings.from_env({"CONSUL_HTTP_ADDR": "", "CONSUL_HTTP_TOKEN": ""})
    assert settings == ConsulSettings()
    assert settings.base_url == "http://127.0.0.1:8500"


def test_unix_socket() -> None:
    settings = ConsulSettings.from_env({"CONSUL_HTTP_ADDR": "unix:///run/consul.sock", "CONSUL_HTTP_SSL": "0"})
    assert (settings.uds, settings.base_url) == ("/run/consul.sock", "http://localhost")


@pytest.mark.parametrize("flag", ["1", "t", "T", "TRUE", "true", "True"])
def test_ssl_flag_raises_but_an_address_never_lowers(flag: str) -> None:
    for address in ("consul:8501", "http://consul:8501", "https://consul:8501"):
        env = {"CONSUL_HTTP_ADDR": address, "CONSUL_HTTP_SSL": flag}
        assert ConsulSettings.from_env(env).base_url == "https://consul:8501"


def test_everything_set() -> None:
    settings = ConsulSettings.from_env(
        {
            "CONSUL_HTTP_TOKEN": "secret-1",
            "CONSUL_HTTP_TOKEN_FILE": "/t",
            "CONSUL_HTTP_AUTH": "me:pass:word",
            "CONSUL_HTTP_SSL_VERIFY": "false",
            "CONSUL_CACERT": "/ca",
            "CONSUL_CAPATH": "/cas",
            "CONSUL_CLIENT_CERT": "/cert",
            "CONSUL_CLIENT_KEY": "/key",
            "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
            "CONSUL_NAMESPACE": "team",
            "CONSUL_PARTITION": "part",
        }
    )
    assert settings == ConsulSettings(
        token="secret-1",
        token_file="/t",
        basic_auth=("me", "pass:word"),
        verify=False,
        cafile="/ca",
        capath="/cas",
        client_cert="/cert",
        client_key="/key",
        tls_server_name="server.dc1.consul",
        namespace="team",
        partition="part",
    )
    assert "secret-1" not in repr(settings)
    assert "word" not in repr(settings)


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"CONSUL_HTTP_ADDR": "ftp://x"}, "CONSUL_HTTP_ADDR: 'ftp://x': unknown scheme 'ftp'"),
        ({"CONSUL_HTTP_ADDR": "host:port"}, "CONSUL_HTTP_ADDR: 'host:port'"),
        ({"CONSUL_HTTP_ADDR": "host:70000"}, "CONSUL_HTTP_ADDR: 'host:70000'"),
        ({"CONSUL_HTTP_ADDR": "::1"}, "CONSUL_HTTP_ADDR: '::1'"),
        ({"CONSUL_HTTP_ADDR": "[::1"}, "CONSUL_HTTP_ADDR"),
        ({"CONSUL_HTTP_ADDR": "http://"}, "CONSUL_HTTP_ADDR"),
        ({"CONSUL_HTTP_ADDR": "http://me:pw@host"}, "CONSUL_HTTP_ADDR"),
        ({"CONSUL_HTTP_ADDR": "unix://run/x"}, "CONSUL_HTTP_ADDR: 'unix://run/x': a unix socket needs"),
        ({"CONSUL_HTTP_SSL": "yes"}, "CONSUL_HTTP_SSL: 'yes' is not a boolean"),
        ({"CONSUL_HTTP_SSL_VERIFY": "no"}, "CONSUL_HTTP_SSL_VERIFY: 'no' is not a boolean"),
        ({"CONSUL_CLIENT_CERT": "/c"}, "CONSUL_CLIENT_KEY: not set"),
        ({"CONSUL_CLIENT_KEY": "/k"}, "CONSUL_CLIENT_CERT: not set"),
    ],
)
def test_bad_values_are_named(env: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        ConsulSettings.from_env(env)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_tls_files_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ValueError, match=r"CONSUL_CACERT.*/nowhere"):
        ConsulSettings(cafile="/nowhere").tls.context()
    with pytest.raises(ValueError, match=r"CONSUL_CLIENT_CERT.*/nowhere"):
        ConsulSettings(client_cert="/nowhere", client_key="/nowhere").tls.context()


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("1m30s", 90), ("250ms", 0.25), ("1h0m0s", 3600), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "1s ", "1x", "-1s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_a_wait_is_never_zero() -> None:
    assert format_duration(0) == "1ms"
    assert format_duration(60) == "60000ms"


async def test_a_token_file_wins_over_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" from-file \n")
    settings = ConsulSettings.from_env({"CONSUL_HTTP_TOKEN": "fixed", "CONSUL_HTTP_TOKEN_FILE": str(path)})
    assert await TokenSource(settings.token, settings.token_file).current() == "from-file"


def test_http_auth_without_a_password() -> None:
    assert ConsulSettings.from_env({"CONSUL_HTTP_AUTH": "user"}).basic_auth == ("user", "")
