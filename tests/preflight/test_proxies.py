"""Which requests of a runtime go to its proxy, by Go's rules, and the line that excepts a mirror."""

from __future__ import annotations

import pytest

from spegel_consul.endpoints.check import Status
from spegel_consul.preflight.proxies import Proxies, check_of
from spegel_consul.runtimes.docker import Docker

NEAR = "http://10.0.0.7:5000"


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("http://127.0.0.1:5000", ""),
        ("http://127.9.9.9:5000", ""),
        ("http://[::1]:5000", ""),
        ("http://localhost:5000", ""),
        (NEAR, "*"),
        (NEAR, "10.0.0.7"),
        (NEAR, "a.lan, 10.0.0.7 "),
        (NEAR, "10.0.0.7:5000"),
        (NEAR, "10.0.0.0/8"),
        ("http://[fd00::7]:5000", "fd00::7"),
        ("http://[fd00::7]:5000", "[fd00::7]:5000"),
        ("http://[fd00::7]:5000", "fd00::/8"),
        ("http://spegel.service.consul:5000", "consul"),
        ("http://spegel.service.consul:5000", ".consul"),
        ("http://spegel.service.consul:5000", "*.service.consul"),
        ("http://Spegel.Service.Consul.:5000", "SPEGEL.service.consul:5000"),
    ],
)
def test_without_the_proxy(url: str, no_proxy: str) -> None:
    assert not Proxies(http=True, no_proxy=no_proxy).catch(url)


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        (NEAR, ""),
        (NEAR, "localhost,127.0.0.1"),
        (NEAR, "10.0.0.70"),
        (NEAR, "10.0.0.7:5001"),
        (NEAR, "192.168.0.0/16"),
        (NEAR, "10.0.0.0/99"),
        (NEAR, "10.0.0"),
        (NEAR, ".7"),
        ("http://spegel.service.consul:5000", ".spegel.service.consul"),
        ("http://spegel.service.consul:5000", "sul"),
        ("http://spegel.service.consul:5000", "*sul:1"),
        ("http://consul:5000", ".consul"),
    ],
)
def test_through_the_proxy(url: str, no_proxy: str) -> None:
    assert Proxies(http=True, no_proxy=no_proxy).catch(url)


def test_each_scheme_has_its_own() -> None:
    assert not Proxies(https=True).catch(NEAR)
    assert Proxies(https=True).catch("https://10.0.0.7:5000")
    assert not Proxies(http=True).catch("https://10.0.0.7:5000")
    for odd in ("", "http://", "http://[", "ftp://a", "http://a:99999"):
        assert not Proxies(http=True, https=True).catch(odd)


def test_where_they_come_from() -> None:
    secret = "http://me:s3cret@proxy:3128"
    found = Proxies.of_environment({"HTTP_PROXY": secret, "no_proxy": "a", "NO_PROXY": "", "https_proxy": ""})
    assert found == Proxies(True, False, "a")
    assert Proxies.of_environment({"http_proxy": "x", "HTTPS_PROXY": "y"}) == Proxies(True, True)
    assert "s3cret" not in repr(found)


def test_the_line_to_add() -> None:
    proxies = Proxies(http=True, no_proxy="localhost,.lan,")
    urls = [NEAR, "http://127.0.0.1:5000", "http://mirror.lan:5000", "http://[fd00::7]:5000", "http://10.0.0.7:5001"]
    check = check_of("containerd", proxies, urls)
    assert check.status is Status.FAIL
    assert "NO_PROXY=localhost,.lan,10.0.0.7,fd00::7" in check.fix.splitlines()
    assert not any(Proxies(http=True, no_proxy=check.fix.splitlines()[1].partition("=")[2]).catch(url) for url in urls)
    assert "NO_PROXY=10.0.0.7" in check_of("docker", Proxies(http=True), [NEAR]).fix.splitlines()
    assert check_of("docker", Proxies(http=True), ["http://127.0.0.1:5000"]).status is Status.OK
    assert check_of("docker", Proxies(), [NEAR]).status is Status.OK
    assert "not checked" in check_of("containerd", None, [NEAR]).says


def test_a_mirrors_password_is_not_shown() -> None:
    for proxies in (Proxies(), Proxies(http=True)):
        check = check_of("containerd", proxies, ["http://me:s3cret@10.0.0.7:5000"])
        assert "s3cret" not in check.says + check.fix


def test_docker_says() -> None:
    docker = Docker("28.5.2", True, None, (), has_http_proxy=True, no_proxy="x")  # type: ignore[arg-type]
    assert Proxies.of_docker(docker) == Proxies(True, False, "x")
