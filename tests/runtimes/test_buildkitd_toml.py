from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from runtimes.certs_d import tree

from spegel_consul.runtimes.clients.buildkitd_toml import Added, added, mirrored, taken_out
from spegel_consul.runtimes.clients.registries_conf import WELL_KNOWN
from spegel_consul.runtimes.configure import Refused, buildkitd_directory, plan_buildkitd
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry, Target

LOCAL, TLS = Target("http://127.0.0.1:5000"), Target("https://mirror.lan")
MIRRORING = Mirroring((LOCAL, TLS))
GHCR, HUB, ALL = Registry("ghcr.io"), Registry("docker.io"), Registry(DEFAULT)

USERS = """\
debug = true

# our cache
[registry."docker.io"]
  mirrors = ["cache.lan:5000"] # in the basement

[worker.oci]
  gc = true

[registry."cache.lan:5000"]
  insecure = true
"""


def written(
    existing: str, *registries: Registry, mirroring: Mirroring = MIRRORING, keep: bool = True
) -> dict[str, Any]:
    text, what = added(existing, registries or (GHCR,), mirroring, keep_existing=keep)
    assert tomllib.loads(taken_out(text, what)) == tomllib.loads(existing)
    found: dict[str, Any] = tomllib.loads(text)["registry"]
    return found


def test_a_mirror_has_no_path_and_its_own_table_for_http() -> None:
    assert written("") == {
        "ghcr.io": {"mirrors": ["127.0.0.1:5000", "mirror.lan"]},
        "127.0.0.1:5000": {"http": True},
    }


def test_what_is_there_stays() -> None:
    text, what = added(USERS, [HUB, GHCR], MIRRORING, keep_existing=True)
    for line in USERS.splitlines():
        if "mirrors" not in line:
            assert line in text.splitlines()
    assert "# in the basement" in text
    found = tomllib.loads(text)["registry"]
    assert found["docker.io"]["mirrors"] == ["127.0.0.1:5000", "mirror.lan", "cache.lan:5000"]
    assert found["ghcr.io"]["mirrors"] == ["127.0.0.1:5000", "mirror.lan"]
    assert added(text, [HUB, GHCR], MIRRORING, keep_existing=True) == (text, Added())
    assert tomllib.loads(taken_out(text, what)) == tomllib.loads(USERS)
    edited = text.replace("debug = true", "debug = false").replace('"cache.lan:5000"] #', '"cache.lan:5000", "new"] #')
    left = tomllib.loads(taken_out(edited, what))
    assert left["debug"] is False
    assert left["registry"]["docker.io"]["mirrors"] == ["cache.lan:5000", "new"]
    assert "ghcr.io" not in left["registry"]


def test_mirrors_are_replaced_by_name() -> None:
    text, what = added(USERS, [HUB], MIRRORING, keep_existing=False)
    assert tomllib.loads(text)["registry"]["docker.io"]["mirrors"] == ["127.0.0.1:5000", "mirror.lan"]
    assert what.dropped == {"docker.io": ("cache.lan:5000",)}
    assert tomllib.loads(taken_out(text, what)) == tomllib.loads(USERS)


def test_a_registry_without_tls_and_a_mirror_that_has_a_table() -> None:
    found = written('[registry."127.0.0.1:5000"]\ninsecure = true', Registry("one.lan", "http://one.lan"))
    assert found["one.lan"] == {"mirrors": ["127.0.0.1:5000", "mirror.lan"], "http": True}
    assert found["127.0.0.1:5000"] == {"insecure": True, "http": True}


@pytest.mark.parametrize("existing", ["", "debug = true\n", USERS, '[registry."docker.io"]\n  http = true\n'])
@pytest.mark.parametrize("formatted", [False, True])
def test_comments_after_our_tables_stay(existing: str, formatted: bool) -> None:
    text, what = added(existing, [GHCR], MIRRORING, keep_existing=True)
    assert taken_out(text, what) == existing
    users = "\n# mine\n[worker.oci2]\n  x = 1 # one\n"
    edited = text.replace('[registry."127', '# of us\n[registry."127') + users
    if formatted:  # as an editor does it
        edited = (
            edited.replace("  mirrors", "mirrors").replace("  http", "http").replace("[registry.", " [ registry . ")
        )
    left = taken_out(edited, what)
    assert left.endswith(users)
    assert "# of us" in left
    assert tomllib.loads(left) == tomllib.loads(existing + users)
    assert taken_out(edited.replace("\n", "\r\n"), what).endswith(users.replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "form",
    [
        '[registry]\n  "ghcr.io" = {mirrors = ["127.0.0.1:5000", "mirror.lan"]}\n  "127.0.0.1:5000" = {http = true}\n',
        'registry = {"ghcr.io" = {mirrors = ["127.0.0.1:5000"]}, "127.0.0.1:5000" = {http = true}}\n',
        '[registry]\n"ghcr.io".mirrors = ["mirror.lan"]\n"127.0.0.1:5000".http = true\n',
    ],
)
def test_our_tables_are_taken_out_in_any_form(form: str) -> None:
    _, what = added("debug = true\n", [GHCR], MIRRORING, keep_existing=True)
    assert tomllib.loads(taken_out("debug = true\n" + form + "# mine\n", what)) == {"debug": True}


def test_all_registries_are_those_that_are_known() -> None:
    existing = USERS + '[registry."one.lan"]\nhttp = true\n'
    hosts = [registry.host for registry in mirrored(existing, [ALL], MIRRORING)]
    assert hosts == [*WELL_KNOWN, "one.lan"]


@pytest.mark.parametrize(
    ("existing", "reason"),
    [
        ("registry = ", "it is not TOML"),
        ("registry = 5", r'not a table of \[registry."…"\] tables'),
        ('registry = {"ghcr.io" = 5}', r'not a table of \[registry."…"\] tables'),
        ('[registry."ghcr.io"]\nmirrors = "a"', "the mirrors of ghcr.io in it are not a list"),
        ('[registry."127.0.0.1:5000"]\nhttp = false', "http = false, but 127.0.0.1:5000 is asked without TLS"),
        ('registry = {"docker.io" = {mirrors = ["a"]}}', "its registries are not written as"),
    ],
)
def test_a_file_that_cant_be_changed(existing: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        added(existing, [GHCR], MIRRORING, keep_existing=True)


NAMES = st.sampled_from(["docker.io", "ghcr.io", "127.0.0.1:5000", "one.lan", "mirror.lan"])
MIRRORS = st.lists(st.sampled_from(["127.0.0.1:5000", "a.lan", "b.lan/path"]), unique=True, max_size=3)
TABLE = st.fixed_dictionaries(
    {}, optional={"mirrors": MIRRORS, "http": st.just(True), "ca": st.lists(st.text("ab", max_size=3), max_size=2)}
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "debug": st.booleans(),
        "registry": st.dictionaries(NAMES, TABLE, max_size=4),
        "worker": st.fixed_dictionaries({"oci": st.dictionaries(st.text("ab", min_size=1, max_size=3), st.integers())}),
    },
)


@given(DOCUMENTS, st.booleans(), st.booleans())
def test_everything_else_keeps_its_meaning_and_taking_out_undoes_it(
    before: dict[str, Any], keep: bool, plain: bool
) -> None:
    existing = tomlkit.dumps(before)
    registries = [GHCR, HUB, Registry("one.lan", "http://one.lan" if plain else None)]
    text, what = added(existing, registries, MIRRORING, keep_existing=keep)
    after = tomllib.loads(text)
    assert {**after, "registry": 0} == {**before, "registry": 0}
    tables = before.get("registry", {})
    for name in ("ghcr.io", "docker.io", "one.lan"):
        listed = tables.get(name, {}).get("mirrors", [])
        others = [mirror for mirror in listed if mirror != "127.0.0.1:5000"] if keep else []
        assert after["registry"][name]["mirrors"] == ["127.0.0.1:5000", "mirror.lan", *others]
    assert after["registry"]["127.0.0.1:5000"]["http"] is True
    assert all(after["registry"][name].get("ca") == table.get("ca") for name, table in tables.items())
    back = tomllib.loads(taken_out(text, what))
    assert back.keys() == before.keys()
    found = back.get("registry", {})
    for name, table in tables.items():
        # one of ours that was there already has come to the front, and is taken out as ours
        others = [mirror for mirror in table.get("mirrors", []) if mirror != "127.0.0.1:5000"]
        assert found[name].keys() == table.keys()
        assert [mirror for mirror in found[name].get("mirrors", []) if mirror != "127.0.0.1:5000"] == others
    assert found.keys() == tables.keys()


def plan(path: Path, *registries: Registry, mirroring: Mirroring = MIRRORING, keep: bool = True) -> list[str]:
    planned = plan_buildkitd(path, registries or (GHCR, HUB), mirroring, keep_existing=keep)
    return [*planned.directory.write(planned.files), *planned.notes]


def cleanup(path: Path) -> list[str]:
    return list(buildkitd_directory(path).restore())


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "buildkit/buildkitd.toml"
    path.parent.mkdir()
    path.write_text(USERS)
    before = tree(tmp_path)
    assert plan(path) == [
        f"wrote {path}",
        "restart BuildKit to make it read buildkitd.toml: systemctl restart buildkit",
    ]
    configured = tree(tmp_path)
    assert plan(path) == []
    assert tree(tmp_path) == configured
    plan(path, HUB)
    assert "ghcr.io" not in path.read_text()
    assert cleanup(path) == [f"restored {path}"]
    assert tree(tmp_path) == before
    assert cleanup(path) == []


def test_a_machine_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "etc/buildkit/buildkitd.toml"
    plan(path, ALL)
    cleanup(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [True, False])
def test_an_edited_file_keeps_the_edits(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "buildkitd.toml"
    path.write_text(USERS)
    plan(path, keep=keep)
    path.write_text(path.read_text().replace("debug = true", "debug = false"))
    plan(path, keep=keep)
    assert tomllib.loads(path.read_text())["registry"]["docker.io"]["mirrors"][0] == "127.0.0.1:5000"
    path.write_text(path.read_text().replace("gc = true", "gc = false"))
    assert cleanup(path) == [f"took our part out of {path}, which was edited since it was written"]
    expected = USERS.replace("debug = true", "debug = false").replace("gc = true", "gc = false")
    assert tomllib.loads(path.read_text()) == tomllib.loads(expected)
    assert [each.name for each in tmp_path.iterdir()] == ["buildkitd.toml"]


def test_notes(tmp_path: Path) -> None:
    path = tmp_path / "buildkitd.toml"
    path.write_text(USERS)
    mirroring = Mirroring((LOCAL,), resolve_tags=False, authorization="Basic eA==")
    _, *notes = plan(path, ALL, mirroring=mirroring, keep=False)
    assert notes[0] == f"{path} no longer names cache.lan:5000 for docker.io: cleanup brings it back"
    assert "these are mirrored: docker.io, ghcr.io" in notes[1]
    assert "for tags too" in notes[2]
    assert "docker login 127.0.0.1:5000" in notes[3]


def test_a_bad_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "buildkitd.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(Refused, match="left alone, and so was all else: it is not UTF-8"):
        plan(path)
