"""The names of modules and functions in the documentation are those of the code.

A name is a text in backquotes: `join/keeper.py`, `join/keeper.py:RingKeeper.run`, `ring/dht/`. Paths are relative to
the package or to the repository.

Rules that tie documents to the code belong here; commands of the documentation are run by tests/web/test_docs.py.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from lab.documents import ROOT

PACKAGE = ROOT / "spegel_consul"
PAGES = ["CONTRIBUTING.md", "README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FUNCTION = re.compile(r"`([\w./-]+\.py):([\w.]+)`")
MODULE = re.compile(r"`([\w./-]+\.py)(?::[\w.]+)?`")
DIRECTORY = re.compile(r"`([a-z_]+(?:/[\w-]+)*/)`")
ROOM = re.compile(r"^\| ((?:`[\w./]+`(?:, )?)+) \|", re.M)

NOT_ROOMS = {"__init__.py", "__main__.py"}


def text(page: str) -> str:
    return (ROOT / page).read_text()


def at(path: str) -> Path | None:
    """Where a path of the documentation leads, or None."""
    return next((base / path for base in (PACKAGE, ROOT) if (base / path).exists()), None)


@cache
def names(module: Path) -> frozenset[str]:
    """What a module defines: functions, classes and constants, and those of its classes as ``Class.name``."""
    found: set[str] = set()

    def look(body: list[ast.stmt], within: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef(name=name, body=inner):
                    found.add(within + name)
                    look(inner, f"{within}{name}.")
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(within + name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(within + name)
                case ast.Assign(targets=targets):
                    found.update(within + target.id for target in targets if isinstance(target, ast.Name))

    look(ast.parse(module.read_text()).body, "")
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_each_function_that_is_named_is_there(page: str) -> None:
    for path, name in FUNCTION.findall(text(page)):
        module = at(path)
        assert module is not None, f"{page}: no file {path}"
        assert name in names(module), f"{page}: {path} has no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_each_module_that_is_named_is_there(page: str) -> None:
    assert [path for path in MODULE.findall(text(page)) if at(path) is None] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_each_directory_that_is_named_is_there(page: str) -> None:
    assert [path for path in DIRECTORY.findall(text(page)) if at(path) is None] == []


def test_the_table_has_every_room_and_no_other() -> None:
    table = text("docs/architecture.md").split("\n## Trip", 1)[0]
    listed = [name.rstrip("/") for row in ROOM.findall(table) for name in re.findall(r"`([^`]+)`", row)]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - NOT_ROOMS
    assert len(set(listed)) == len(listed)
    assert {name.split("/")[0] for name in listed} == rooms | modules
    assert [name for name in listed if at(name) is None] == []


def test_the_trips_name_functions_of_every_room_on_their_way() -> None:
    trips = text("docs/architecture.md").split("\n## Trip ")[1:]
    rooms = [{path.split("/")[0] for path, _ in FUNCTION.findall(trip)} for trip in trips]
    assert len(trips) == 3
    assert {"http", "registry", "store", "zerocopy"} <= rooms[0]
    assert {"http", "registry", "ring", "zerocopy"} <= rooms[1]
    assert {"consul", "join", "ring"} <= rooms[2]


def test_the_nightly_run_and_the_documents_name_targets_of_make() -> None:
    makefile = text("Makefile")
    nightly = re.findall(r"^ +- (make [^\n]+)$", text(".github/workflows/nightly.yml"), re.M)
    named = re.findall(r"`make ([a-z-]+)[^`]*`", "".join(map(text, PAGES)))
    assert {command.split()[1] for command in nightly} == {"bench", "faults", "fresh", "soak", "sim", "ktls"}
    for command in nightly:
        for word in command.split()[2:]:
            assert re.search(rf"^{word.partition('=')[0]} \?=", makefile, re.M), command
    for target in {*named, *(command.split()[1] for command in nightly)}:
        assert re.search(rf"^{target}:", makefile, re.M), target
