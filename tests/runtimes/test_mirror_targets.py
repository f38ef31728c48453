import pytest

from spegel_consul.runtimes.mirror_targets import Registry, Target, own_mirror, parse_registries, parse_targets


@pytest.mark.parametrize(
    ("text", "host", "server"),
    [
        ("docker.io", "docker.io", None),
        ("https://ghcr.io", "ghcr.io", None),
        ("https://ghcr.io/", "ghcr.io", None),
        ("http://registry.lan:5000", "registry.lan:5000", "http://registry.lan:5000"),
        ("GHCR.io", "ghcr.io", None),
        ("https://index.docker.io", "docker.io", None),
        ("Registry-1.Docker.io", "docker.io", None),
        ("[fd00::1]:5000", "[fd00::1]:5000", None),
        ("_default", "_default", None),
    ],
)
def test_registries(text: str, host: str, server: str | None) -> None:
    assert parse_registries([text]) == (Registry(host, server),)


def test_each_registry_once_and_all_when_none_is_given() -> None:
    assert parse_registries([]) == (Registry("_default"),)
    assert parse_registries(["_default", "ghcr.io", "https://ghcr.io", "_default"]) == (
        Registry("_default"),
        Registry("ghcr.io"),
    )


@pytest.mark.parametrize(
    "texts", [["ftp://x"], ["ghcr.io/library"], ["a b"], ["../etc"], ["x", "http://x"], ["_backup"]]
)
def test_what_is_no_registry(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="registry"):
        parse_registries(texts)


def test_a_registry_with_a_port_has_two_directories_as_in_containerd() -> None:
    assert Registry("a.lan:5000").directories == ("a.lan_5000_", "a.lan:5000")
    assert Registry("[fd00::1]:5000").directories == ("[fd00::1]_5000_", "[fd00::1]:5000")
    assert Registry("ghcr.io").directories == ("ghcr.io",)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://10.0.0.7:5000", "http://10.0.0.7:5000"),
        ("http://10.0.0.7:5000/", "http://10.0.0.7:5000"),
        ("HTTPS://Mirror.lan", "https://mirror.lan"),
        ("http://[fd00::7]:5000", "http://[fd00::7]:5000"),
        ("http://fd00::7:5000", "http://[fd00::7]:5000"),
        ("http://fd00::abcd", "http://[fd00::abcd]"),
    ],
)
def test_mirror_targets(text: str, url: str) -> None:
    assert Target.parse(text).url == url


@pytest.mark.parametrize(
    "text",
    ["10.0.0.7:5000", "ftp://a", "http://", "http://a/v2", "http://u:p@a", "http://a?b", "http://a:0", "http://a:99999",
     "http://a b", 'http://a"b', "http://a\nb", "http://::g:5000"],
)  # fmt: skip
def test_what_is_no_mirror_target(text: str) -> None:
    with pytest.raises(ValueError, match="mirror target"):
        Target.parse(text)


def test_targets_stay_in_order_and_are_asked_once() -> None:
    targets = parse_targets(["http://b", "http://a", "http://b/"])
    assert [target.url for target in targets] == ["http://b", "http://a"]


def test_loopback_and_plain() -> None:
    assert Target.parse("http://127.0.0.1:5000").is_loopback
    assert Target.parse("http://[::1]:5000").is_loopback
    assert Target.parse("http://localhost:5000").is_loopback
    assert not Target.parse("https://10.0.0.7:5000").is_loopback
    assert not Target.parse("https://10.0.0.7:5000").is_plain
    assert Target.parse("http://10.0.0.7:5000").address == "10.0.0.7:5000"


@pytest.mark.parametrize(
    ("bound", "url"),
    [
        ("", "http://127.0.0.1:5000"),
        ("0.0.0.0", "http://127.0.0.1:5000"),
        ("::", "http://127.0.0.1:5000"),
        ("127.0.0.1", "http://127.0.0.1:5000"),
        ("::1", "http://[::1]:5000"),
        ("localhost", "http://localhost:5000"),
        ("10.0.0.7", "http://10.0.0.7:5000"),
        ("fd00::7", "http://[fd00::7]:5000"),
        ("node.lan", "http://node.lan:5000"),
    ],
)
def test_the_own_mirror_is_on_loopback_where_it_listens_there(bound: str, url: str) -> None:
    assert own_mirror(bound, 5000) == Target(url)


def test_the_own_mirror_has_a_port() -> None:
    with pytest.raises(ValueError, match="port 0"):
        own_mirror("", 0)
