from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from runtimes.certs_d import tree

from spegel_consul.runtimes.clients.registries_conf import (
    HEADER,
    NAME,
    WELL_KNOWN,
    Configuration,
    drop_in,
    expanded,
    in_path,
)
from spegel_consul.runtimes.configure import Refused, containers_directory, plan_registries_conf
from spegel_consul.runtimes.hosts_toml import Mirroring, Unusable
from spegel_consul.runtimes.mirror_targets import DEFAULT, Registry, Target

LOCAL, TLS = Target("http://127.0.0.1:5000"), Target("https://mirror.lan")
MIRRORING = Mirroring((LOCAL, TLS))
GHCR, ALL = Registry("ghcr.io"), Registry(DEFAULT)

USERS = """\
unqualified-search-registries = ["docker.io"]

[[registry]]
location = "ghcr.io"

[[registry.mirror]]
location = "cache.lan/ghcr"

[[registry]]
prefix = "ghcr.io/org"
location = "harbor.lan/org"
insecure = true

[[registry]]
prefix = "quay.io"
location = "quay.io"
blocked = true
"""


def tables(text: str) -> dict[str, dict[str, Any]]:
    return {table["prefix"]: table for table in tomllib.loads(text)["registry"]}


def written(
    existing: str, *registries: Registry, mirroring: Mirroring = MIRRORING, keep: bool = True
) -> dict[str, Any]:
    return tables(drop_in(registries, mirroring, Configuration.of([("main", existing)]), keep_existing=keep).text)


def test_the_registry_stands_in_the_mirrors_path() -> None:
    text = drop_in([GHCR], MIRRORING, Configuration({}), keep_existing=True).text
    assert text.startswith(HEADER)
    assert tomllib.loads(text)["registry"] == [
        {
            "prefix": "ghcr.io",
            "location": "ghcr.io",
            "mirror": [
                {"location": "127.0.0.1:5000/ghcr.io", "insecure": True},
                {"location": "mirror.lan/ghcr.io"},
            ],
        }
    ]


def test_a_port_is_written_without_a_colon_and_http_is_allowed() -> None:
    found = written("", Registry("registry.lan:5443", "http://registry.lan:5443"))["registry.lan:5443"]
    assert found["location"] == "registry.lan:5443"
    assert found["insecure"] is True
    assert found["mirror"][0]["location"] == "127.0.0.1:5000/registry.lan_5443"


def test_digests_only() -> None:
    mirroring = Mirroring((LOCAL,), resolve_tags=False)
    assert written("", GHCR, mirroring=mirroring)["ghcr.io"]["mirror"] == [
        {"location": "127.0.0.1:5000/ghcr.io", "insecure": True, "pull-from-mirror": "digest-only"}
    ]
    # the table that says it for all mirrors may not have a mirror that says it for itself
    by_digest = '[[registry]]\nlocation = "ghcr.io"\nmirror-by-digest-only = true\n'
    assert written(by_digest, GHCR, mirroring=mirroring)["ghcr.io"]["mirror"] == [
        {"location": "127.0.0.1:5000/ghcr.io", "insecure": True}
    ]


def test_what_the_user_said_of_a_registry_is_kept() -> None:
    found = written(USERS, GHCR, Registry("quay.io"), Registry("docker.io"))
    assert [mirror["location"] for mirror in found["ghcr.io"]["mirror"]] == [
        "127.0.0.1:5000/ghcr.io",
        "mirror.lan/ghcr.io",
        "cache.lan/ghcr",
    ]
    org = found["ghcr.io/org"]
    assert (org["location"], org["insecure"]) == ("harbor.lan/org", True)
    assert org["mirror"][0]["location"] == "127.0.0.1:5000/ghcr.io/org"
    assert set(found) == {"ghcr.io", "ghcr.io/org", "docker.io"}  # a blocked one stays blocked where it is


def test_mirrors_are_left_out_by_name() -> None:
    planned = drop_in([GHCR], MIRRORING, Configuration.of([("main", USERS)]), keep_existing=False)
    assert planned.dropped == {"ghcr.io": ("cache.lan/ghcr",)}
    assert "cache.lan" not in planned.text
    assert "harbor.lan/org" in planned.text


def test_a_later_file_counts_and_in_one_file_the_first_table() -> None:
    twice = '[[registry]]\nlocation = "ghcr.io"\n[[registry]]\nprefix = "ghcr.io"\nlocation = "second.lan"\n'
    later = '[[registry]]\nprefix = "ghcr.io"\nlocation = "later.lan"\n'
    assert Configuration.of([("a", twice)]).entries["ghcr.io"].keys == {"location": "ghcr.io"}
    found = Configuration.of([("a", twice), ("b", later)]).entries["ghcr.io"]
    assert (found.keys["location"], found.origin) == ("later.lan", "b")


def test_a_registry_of_a_wildcard() -> None:
    text = '[[registry]]\nprefix = "*.corp.example"\ninsecure = true\n'
    found = written(text, Registry("images.corp.example"))["images.corp.example"]
    assert (found["location"], found["insecure"]) == ("images.corp.example", True)
    assert "insecure" not in written(text, Registry("corp.example"))["corp.example"]


def test_all_registries_are_those_that_are_known() -> None:
    named = Configuration.of([("main", USERS + '[[registry]]\nlocation = "registry.lan:5000"\n')]).hosts
    hosts = [registry.host for registry in expanded([ALL, Registry("one.lan", "http://one.lan")], named)]
    assert hosts == [*WELL_KNOWN, "registry.lan:5000", "one.lan"]
    assert [each.host for each in expanded([ALL], ["[fd00::1]:5000", "nodots", "UPPER.lan"])] == list(WELL_KNOWN)


@pytest.mark.parametrize("host", ["[fd00::1]:5000", "nodots", "my_host:5000"])
def test_a_registry_that_no_path_can_name(host: str) -> None:
    with pytest.raises(Unusable, match="can't be named in the path"):
        in_path(host)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("registry = ", "it is not TOML"),
        ("a = " + "[" * 9999, "it is n"),
        ('[registries.search]\nregistries = ["docker.io"]\n', "version 1.*unqualified-search-registries"),
        ('registry = "ghcr.io"\n', r"not written as \[\[registry\]\]"),
        ('[registry."ghcr.io"]\n', r"not written as \[\[registry\]\]"),
        ("[[registry]]\nblocked = true\n", "neither prefix nor location"),
        ('[[registry]]\nprefix = "a.io"\n', "a.io has no location"),
        ('[[registry]]\nprefix = "*.a.io/b"\n', "must look like"),
        ("[[registry]]\nlocation = 5\n", "location in it is not a text"),
        ('[[registry]]\nlocation = "https://me:s3cret@a.io"\n', "without http:// or https://"),
        ('[[registry]]\nlocation = "a.io"\ninsecure = "yes"\n', "insecure in the table of a.io"),
        ('[[registry]]\nlocation = "a.io"\npull-from-mirror = "all"\n', "belongs to its mirrors"),
        ('[[registry]]\nlocation = "a.io"\nmirror = ["b"]\n', r"not written as \[\[registry.mirror\]\]"),
        ('[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\n', "a mirror of a.io has no location"),
        ('[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\nlocation = "b"\ninsecure = 1\n', "mirror b is neither"),
        (
            '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "x"\n',
            "none of all",
        ),
        (
            '[[registry]]\nlocation = "a.io"\nmirror-by-digest-only = true\n'
            '[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "all"\n',
            "mirror-by-digest-only, and a mirror",
        ),
        (
            '[[registry]]\nlocation = "x"\n[[registry]]\nprefix = "b.io"\nlocation = "x"\nblocked = true\n',
            "differ in insecure or blocked",
        ),
        ("unqualified-search-registries = 7\n", "not a list of texts"),
    ],
)
def test_a_file_that_the_clients_would_refuse(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=f"(?s)the/file can't be used: .*{reason}") as refused:
        Configuration.of([("the/file", text)])
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[[registry]]\nlocation = "ghcr.io"\nlater = {a = 1}\n', "key 'later', which can't be copied"),
        ('[[registry]]\nprefix = "ghcr.io/a"\nlocation = "x"\n', "differ in insecure"),
    ],
)
def test_tables_that_cant_be_copied(text: str, reason: str) -> None:
    """A table of each file is right, but both in one file are not."""
    other = '[[registry]]\nprefix = "ghcr.io/b"\nlocation = "x"\ninsecure = true\n'
    existing = Configuration.of([("main", text), ("other", other)])
    with pytest.raises(Unusable, match=reason):
        drop_in([GHCR], MIRRORING, existing, keep_existing=True)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LOCATIONS = st.sampled_from(["ghcr.io", "ghcr.io/org", "quay.io", "cache.lan", "*.lan", "docker.io/library/"]) | TEXTS
TABLES = st.fixed_dictionaries(
    {"location": LOCATIONS},
    optional={
        "prefix": LOCATIONS,
        "insecure": st.booleans(),
        "blocked": st.booleans(),
        "mirror-by-digest-only": st.booleans(),
        "later": TEXTS | st.integers(),
        "mirror": st.lists(
            st.fixed_dictionaries(
                {"location": LOCATIONS},
                optional={"insecure": st.booleans(), "pull-from-mirror": st.sampled_from(["all", "tag-only", ""])},
            ),
            max_size=2,
        ),
    },
)


@given(st.lists(TABLES, max_size=4), st.booleans(), st.booleans())
def test_a_table_keeps_all_but_its_mirrors_and_its_own_come_first(
    drawn: list[dict[str, Any]], keep: bool, tags: bool
) -> None:
    mirroring = Mirroring((LOCAL, TLS), resolve_tags=tags)
    try:
        existing = Configuration.of([("main", tomlkit.dumps({"registry": drawn}))])
        planned = drop_in([GHCR, Registry("docker.io")], mirroring, existing, keep_existing=keep)
    except Unusable:
        return
    found = tables(planned.text)
    assert set(Configuration.of([("ours", planned.text)]).entries) == set(found)
    assert {"ghcr.io", "docker.io"} - set(found) == {
        host for host in ("ghcr.io", "docker.io") if host in existing.entries and existing.entries[host].blocked
    }
    for prefix, table in found.items():
        before = existing.entries[prefix].keys if prefix in existing.entries else {"location": prefix}
        assert {**table, "mirror": 0} == {**before, "prefix": prefix, "mirror": 0}
        first, second, *others = table["mirror"]
        assert [first["location"], second["location"]] == [f"127.0.0.1:5000/{prefix}", f"mirror.lan/{prefix}"]
        assert others == (list(before.get("mirror", [])) if keep else [])


def before_us(root: Path) -> Path:
    base = root / "containers"
    (base / "registries.conf.d").mkdir(parents=True)
    (base / "registries.conf").write_text(USERS)
    (base / "registries.conf.d/000-shortnames.conf").write_text('[aliases]\n"app" = "ghcr.io/org/app"\n')
    (base / "registries.conf.d/README").write_text("not read = ")
    return base


def plan(base: Path, *registries: Registry, mirroring: Mirroring = MIRRORING) -> list[str]:
    planned = plan_registries_conf(base, registries or (GHCR,), mirroring, keep_existing=True)
    return [*planned.directory.write(planned.files), *planned.notes]


def test_there_and_back(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    before = tree(tmp_path)
    assert plan(base) == [f"wrote {base}/registries.conf.d/{NAME}"]
    configured = tree(tmp_path)
    assert plan(base) == []
    assert tree(tmp_path) == configured
    assert len(plan(base, Registry("docker.io"))) == 1
    assert set(tables((base / "registries.conf.d" / NAME).read_text())) == {"docker.io"}
    assert list(containers_directory(base).restore())
    assert tree(tmp_path) == before
    assert list(containers_directory(base).restore()) == []


def test_a_machine_without_these_files(tmp_path: Path) -> None:
    plan(tmp_path / "etc/containers", ALL)
    list(containers_directory(tmp_path / "etc/containers").restore())
    assert list(tmp_path.iterdir()) == []


def test_notes(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    late = base / "registries.conf.d/zz-late.conf"
    late.write_text('[[registry]]\nlocation = "ghcr.io"\n')
    _, *notes = plan(base, ALL, mirroring=Mirroring((LOCAL,), authorization="Basic eA=="))
    assert notes[0] == f"{late} is read after {NAME}, so its tables count: rename it to a name before {NAME}"
    assert "these are mirrored: docker.io, ghcr.io, ghcr.io/org, registry.k8s.io" in notes[1]
    assert notes[2] == f"{NAME} can't hold the mirror's password: podman login 127.0.0.1:5000"


def test_a_file_of_another_with_our_name(tmp_path: Path) -> None:
    base = before_us(tmp_path)
    (base / "registries.conf.d" / NAME).write_text("# mine\n")
    before = tree(tmp_path)
    with pytest.raises(Refused, match=f"{NAME} was not written by this program: move it away"):
        plan(base)
    (base / "registries.conf.d" / NAME).unlink()
    (base / "registries.conf.d/10-bad.conf").write_bytes(b"\xff")
    with pytest.raises(Refused, match=r"nothing was changed: .*10-bad.conf can't be used: it is not UTF-8"):
        plan(base)
    (base / "registries.conf.d/10-bad.conf").unlink()
    (base / "registries.conf.d" / NAME).write_text("# mine\n")
    assert set(tree(tmp_path)) == set(before)
