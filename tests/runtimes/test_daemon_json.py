import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.daemon_files import BOM, ODD

from spegel_consul.runtimes.daemon_json import LOOPBACK, Added, added, taken_out
from spegel_consul.runtimes.hosts_toml import Unusable
from spegel_consul.runtimes.mirror_targets import Target

NEAR, LOCAL, TLS = Target("http://10.0.0.7:5000"), Target("http://127.0.0.1:5000"), Target("https://mirror.lan")

EXISTING = """\
{
    "debug": true,
    "registry-mirrors": [
        "https://cache.lan"
    ],
    "log-opts":   {"max-size": "10m"},
    "features": {"buildkit": true}
}
"""


def test_only_what_is_new_is_put_in() -> None:
    text, what = added(EXISTING, [NEAR, LOCAL, TLS], snapshotter=True)
    assert what == Added((NEAR.url, LOCAL.url, TLS.url), ("10.0.0.7:5000", *LOOPBACK), True)
    document = json.loads(text)
    assert document["registry-mirrors"] == [NEAR.url, LOCAL.url, TLS.url, "https://cache.lan"]
    assert document["insecure-registries"] == ["10.0.0.7:5000", *LOOPBACK]
    assert document["features"] == {"buildkit": True, "containerd-snapshotter": True}
    for line in [*EXISTING.splitlines()[:3], '    "log-opts":   {"max-size": "10m"},']:
        assert line in text.splitlines()
    assert added(text, [NEAR, LOCAL, TLS], snapshotter=True) == (text, Added())


@pytest.mark.parametrize("existing", ["", " \n", "{}", '{"debug":true}', '{"registry-mirrors": [], "features": {}}'])
def test_small_files(existing: str) -> None:
    document = json.loads(added(existing, [NEAR], snapshotter=True)[0])
    assert document["registry-mirrors"] == [NEAR.url]
    assert document["features"] == {"containerd-snapshotter": True}


def test_the_image_store_is_left_alone_when_asked_and_switched_when_off() -> None:
    assert "features" not in json.loads(added("{}", [NEAR], snapshotter=False)[0])
    text, what = added('{"features": {"containerd-snapshotter": false}}', [LOCAL], snapshotter=True)
    assert json.loads(text)["features"]["containerd-snapshotter"] is True
    assert what.snapshotter
    off = '{"features": {"containerd-snapshotter": false, "buildkit": true}}'
    assert taken_out(*added(off, [LOCAL], snapshotter=True)) == off


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"registry-mirrors": "http://x"}, '--registry-mirror, and does not start with "registry-mirrors" in it too'),
        ({"insecure-registries": "x"}, '--insecure-registry, and does not start with "insecure-registries" in it too'),
        ({"features": "buildkit=true"}, '--feature, and does not start with "features" in it too'),
        ({"storage-driver": "overlay2"}, "overlay2, with which the containerd image store pulls nothing"),
    ],
)
def test_a_setting_that_dockerd_has_from_a_flag(flags: dict[str, str], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        added("{}", [NEAR], snapshotter=True, flags=flags)
    text, _ = added("{}", [NEAR], snapshotter=True)
    assert added(text, [NEAR], snapshotter=True, flags=flags) == (text, Added())


@pytest.mark.parametrize(
    ("existing", "snapshotter"),
    [
        ('{"storage-driver": "overlayfs"}', True),
        ('{"storage-driver": "overlay2"}', False),
        ('{"storage-driver": "overlay2", "features": {"containerd-snapshotter": true}}', True),
    ],
)
def test_a_storage_driver_that_the_image_store_has_or_that_we_do_not_break_stays(
    existing: str, snapshotter: bool
) -> None:
    text, what = added(existing, [LOCAL], snapshotter=snapshotter)
    assert json.loads(text)["storage-driver"] == json.loads(existing)["storage-driver"]
    assert json.loads(taken_out(text, what)) == json.loads(existing)


@pytest.mark.parametrize(
    ("existing", "reason"),
    [
        ('{"debug": true,}', "neither comments nor trailing commas"),
        ('{ // a remark\n"debug": true}', "line 1 column 3"),
        ("[]", "not a JSON object"),
        ('{"registry-mirrors": "https://a"}', "not a list"),
        ('{"insecure-registries": {}}', "not a list"),
        ('{"features": []}', "not an object"),
        ('{"storage-driver": "overlay2"}', "overlay2, with which the containerd image store pulls nothing"),
        ('{"max-concurrent-downloads": NaN}', "does not take NaN"),
        ('{"debug": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_file_that_docker_would_refuse(existing: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        added(existing, [NEAR], snapshotter=True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OURS = st.fixed_dictionaries(
    {},
    optional={
        "registry-mirrors": st.lists(st.sampled_from([NEAR.url, "https://x", "http://y"]), unique=True),
        "insecure-registries": st.lists(st.sampled_from(["10.0.0.7:5000", "a"]), unique=True),
        "features": st.dictionaries(st.sampled_from(["containerd-snapshotter", "buildkit"]), st.booleans()),
    },
)


@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4), OURS, st.sampled_from([None, 0, 2, "\t"]), st.booleans()
)
def test_everything_else_keeps_its_meaning_and_taking_out_undoes_it(
    other: dict[str, Any], ours: dict[str, Any], indent: int | str | None, ours_first: bool
) -> None:
    before = {**ours, **other, **ours} if ours_first else {**other, **ours}
    text, what = added(json.dumps(before, indent=indent), [NEAR, LOCAL], snapshotter=True)
    after = json.loads(text)
    assert list(after)[: len(before)] == list(before)
    for name, value in before.items():
        if name not in ("registry-mirrors", "insecure-registries", "features"):
            assert after[name] == value
    assert {NEAR.url, LOCAL.url, *before.get("registry-mirrors", [])} == set(after["registry-mirrors"])
    defaults = set() if "insecure-registries" in before else set(LOOPBACK)
    assert {"10.0.0.7:5000", *defaults, *before.get("insecure-registries", [])} == set(after["insecure-registries"])
    back = json.loads(taken_out(text, what))
    for name in ("registry-mirrors", "insecure-registries"):
        assert back.get(name, []) == before.get(name, [])
    assert back.get("features", {}) == before.get("features", {})
    assert {name for name in back if name not in ours} == set(other) - set(ours)


@pytest.mark.parametrize("comma", [",", "\n,", " , ", "\r\n  ,\r\n"])
def test_a_comma_may_stand_anywhere_between_two_members(comma: str) -> None:
    text, what = added('{"debug": true' + comma + '"log-level": "info"}', [NEAR], snapshotter=True)
    assert json.loads(text)["registry-mirrors"] == [NEAR.url]
    assert json.loads(taken_out(text, what)) == {"debug": True, "log-level": "info"}


def read_by_docker(text: str) -> dict[str, Any]:
    """As encoding/json reads it: the last value of a name counts, and objects are joined."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
        return found

    return json.loads(text.removeprefix(BOM) or "null", object_pairs_hook=members) or {}


@pytest.mark.parametrize("existing", ODD.values(), ids=ODD)
def test_a_file_that_docker_accepts_is_kept(existing: str) -> None:
    before = read_by_docker(existing)
    text, what = added(existing, [NEAR, LOCAL], snapshotter=True)
    after = read_by_docker(text)
    assert text.startswith(BOM) == existing.startswith(BOM)
    assert after["registry-mirrors"] == [NEAR.url, LOCAL.url, *(before.get("registry-mirrors") or [])]
    defaults = () if before.get("insecure-registries") is not None else LOOPBACK
    assert after["insecure-registries"] == [NEAR.address, *defaults]
    assert after["features"] == {**(before.get("features") or {}), "containerd-snapshotter": True}
    assert after.get("debug") == before.get("debug")
    assert added(text, [NEAR, LOCAL], snapshotter=True) == (text, Added())
    back = read_by_docker(taken_out(text, what))
    for name in ("registry-mirrors", "insecure-registries", "features"):
        left = back.get(name) or None
        expected = before.get(name) or None
        assert left == (None if expected == {"containerd-snapshotter": None} else expected)
    assert back.get("debug") == before.get("debug")


def test_registries_on_loopback_stay_without_tls() -> None:
    """From Docker 29.10 on a list takes the place of the default, so a new one has it too; one that is there stays."""
    assert json.loads(added("{}", [NEAR], snapshotter=False)[0])["insecure-registries"] == [NEAR.address, *LOOPBACK]
    assert "insecure-registries" not in json.loads(added("{}", [LOCAL], snapshotter=False)[0])
    for mine in ([], ["127.0.0.1:5001"]):
        text, what = added(json.dumps({"insecure-registries": mine}), [NEAR], snapshotter=False)
        assert sorted(json.loads(text)["insecure-registries"]) == sorted([*mine, NEAR.address])
        assert what.insecure == (NEAR.address,)
