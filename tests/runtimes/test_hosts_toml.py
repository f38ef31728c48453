import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable, fresh, prepended, replaced
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry, Target

MIRRORING = Mirroring((Target("http://10.0.0.7:5000"), Target("http://spegel.service.consul:5000")))
OURS = ["http://10.0.0.7:5000", "http://spegel.service.consul:5000"]
GHCR = Registry("ghcr.io")

EXISTING = """\
# the cache of the second floor
server = "https://ghcr.io" # upstream
ca = [
  "/etc/ca.pem",
]

# it has a certificate of its own
# and a key
[host."https://cache:5000"]  # the cache
  capabilities = ["pull"]
  [host."https://cache:5000".header]
    x-floor = ["2"]

[host."http://last"]
"""


def test_a_fresh_file() -> None:
    text = fresh(GHCR, MIRRORING)
    document = tomllib.loads(text)
    assert list(document["host"]) == OURS
    assert document["host"][OURS[0]] == {"capabilities": ["pull", "resolve"], "dial_timeout": "200ms"}
    assert "server" not in document
    assert tomllib.loads(fresh(Registry("a:5000", "http://a:5000"), MIRRORING))["server"] == "http://a:5000"


def test_tags_may_be_left_to_upstream_and_a_password_be_sent() -> None:
    mirroring = Mirroring(MIRRORING.targets, resolve_tags=False, authorization="Basic eDp5")
    for host in tomllib.loads(fresh(Registry(DEFAULT), mirroring))["host"].values():
        assert host["capabilities"] == ["pull"]
        assert host["header"] == {"Authorization": "Basic eDp5"}


@pytest.mark.parametrize(
    ("tags", "expected"), [(True, ["pull", "resolve", "referrers"]), (False, ["pull", "referrers"])]
)
def test_mirrors_are_asked_for_signatures_only_where_that_is_said(tags: bool, expected: list[str]) -> None:
    mirroring = Mirroring(MIRRORING.targets, resolve_tags=tags, referrers=True)
    for host in tomllib.loads(fresh(Registry(DEFAULT), mirroring))["host"].values():
        assert host["capabilities"] == expected


def test_certificates_of_a_directory_without_hosts_stay_in_force() -> None:
    text = fresh(GHCR, MIRRORING, ["b.crt", "client.cert", "client.key", "a.crt", "odd.cert"])
    document = tomllib.loads(text)
    assert document["ca"] == ["a.crt", "b.crt"]
    assert document["client"] == [["client.cert", "client.key"]]


def test_certificates_with_any_name_that_toml_can_hold() -> None:
    names = ["\U0001f512.crt", 'q"\\\x7f\n\xa0.crt', "ü.cert", "ü.key"]
    document = tomllib.loads(fresh(GHCR, MIRRORING, names))
    assert document["ca"] == sorted(names[:2])
    assert document["client"] == [names[2:]]
    for name in ("\udcff.crt", "\udcff.cert"):
        with pytest.raises(Unusable, match="is not UTF-8, as TOML must be: rename it"):
            fresh(GHCR, MIRRORING, [name, "\udcff.key"])


def test_ours_are_put_before_the_existing_and_all_else_stays_byte_for_byte() -> None:
    text = prepended(EXISTING, GHCR, MIRRORING)
    document, before = tomllib.loads(text), tomllib.loads(EXISTING)
    assert list(document["host"]) == OURS + list(before["host"])
    head, tail = EXISTING.split("\n\n", 1)
    assert head in text
    assert text.endswith(tail)
    assert text.index(OURS[0]) > text.index("/etc/ca.pem")
    assert {key: value for key, value in document.items() if key != "host"} == {
        "server": "https://ghcr.io",
        "ca": ["/etc/ca.pem"],
    }


@pytest.mark.parametrize(
    "existing", ["", "\n\n", "# only a remark", 'server = "https://x"', 'server = "https://x"\r\n\r\n[host."b"]\r\n']
)
def test_small_files(existing: str) -> None:
    document = tomllib.loads(prepended(existing, GHCR, MIRRORING))
    assert list(document["host"])[:2] == OURS
    before = tomllib.loads(existing)
    assert {key for key in document if key != "host"} == {key for key in before if key != "host"}


def test_a_mirror_that_is_in_the_file_already_is_moved_to_the_front() -> None:
    existing = f'[host."http://a"]\n\n[host."{OURS[1]}"]\n  skip_verify = true\n\n[host."http://b"]\n  ca = "x"\n'
    document = tomllib.loads(prepended(existing, GHCR, MIRRORING))
    assert list(document["host"]) == [*OURS, "http://a", "http://b"]
    assert document["host"]["http://b"] == {"ca": "x"}
    assert "skip_verify" not in document["host"][OURS[1]]


@pytest.mark.parametrize(
    ("existing", "reason"),
    [
        ("server = ", "not TOML"),
        ("[host", "not TOML"),
        ('host = {"http://a" = {ca = "x"}}', "not written as"),
        ('host."http://a".ca = "x"', "not written as"),
        ("host = 3", "not a table"),
    ],
)
def test_a_file_that_cant_be_extended_says_why(existing: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        prepended(existing, GHCR, MIRRORING)


@given(
    st.lists(
        st.sampled_from(
            [
                "# remark\n",
                "\n",
                "  \n",
                '[host."http://%d"]\n',
                '  ca = "x" # y\n',
                '[host."http://%d".header]\n  a = "b"\n',
            ]
        ),
        max_size=12,
    )
)
def test_whatever_is_in_a_file_means_the_same_behind_ours(parts: list[str]) -> None:
    existing = "".join(part % number if "%d" in part else part for number, part in enumerate(parts))
    try:
        before = tomllib.loads(existing)
    except tomllib.TOMLDecodeError:
        return
    document = tomllib.loads(prepended(existing, GHCR, MIRRORING))
    assert list(document["host"]) == OURS + list(before.get("host", {}))
    for url, host in before.get("host", {}).items():
        assert document["host"][url] == host
    assert document.get("ca") == before.get("ca")


def test_other_hosts_are_replaced_and_what_belongs_to_the_registry_stays() -> None:
    existing = EXISTING.replace("\n\n", '\nclient = [["a.cert", "a.key"]]\n\n', 1) + '\n[header]\n  X = ["y"]\n'
    document = tomllib.loads(replaced(existing, GHCR, MIRRORING))
    assert list(document.pop("host")) == OURS
    assert document == {
        "server": "https://ghcr.io",
        "ca": ["/etc/ca.pem"],
        "client": [["a.cert", "a.key"]],
        "header": {"X": ["y"]},
    }


@pytest.mark.parametrize(
    "existing",
    ['server = "https://x"\nhost = {"http://a" = {ca = "x"}}', 'host."http://a".ca = "x"\nserver = "https://x"\n'],
)
def test_hosts_in_any_form_are_replaced(existing: str) -> None:
    document = tomllib.loads(replaced(existing, Registry("x:5000", "http://x:5000"), MIRRORING))
    assert list(document.pop("host")) == OURS
    assert document == {"server": "https://x"}


@pytest.mark.parametrize(
    "existing",
    [
        f'[host."{OURS[0]}"]\n[other]\n[host."http://b"]\n',
        f'[host."http://a"]\n[other]\nx = 1\n[host."{OURS[0]}"]\nca = "x"\n[more]\n[host."{OURS[1]}"]\n',
        *("a = " + "[" * depth + "]" * depth for depth in (20, 100, 200, 300, 400, 20_000)),
    ],
)
def test_odd_files_are_refused_or_mean_the_same(existing: str) -> None:
    for change in (prepended, replaced):
        try:
            text = change(existing, GHCR, MIRRORING)
        except Unusable as exc:
            assert "\n" not in str(exc)
        else:
            assert list(tomllib.loads(text)["host"])[:2] == OURS
