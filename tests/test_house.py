"""The layout of the product: a file is found by its name, and a package is read in one sitting.

The order of the packages is kept by import-linter (``[tool.importlinter]`` in pyproject.toml). A rule about files and
folders belongs here.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import spegel_consul

PRODUCT = Path(spegel_consul.__file__).parent
FILES = sorted(PRODUCT.rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]

MOST_MODULES, MOST_LINES = 12, 400
MANY_MODULES = {"commands", "join/sources"}
"""Packages of one module for each of a kind, which may have any number of them."""
ROOM_SAYS_ALL = {"memory.py"}
"""Names that several packages share, because each file is its package's answer to the same question."""


def test_a_name_stands_for_one_file() -> None:
    paths = defaultdict(list)
    for path in MODULES:
        if path.parent != PRODUCT / "commands":  # a command's file has the name of the command
            paths[path.name].append(str(path.relative_to(PRODUCT)))
    assert [same for name, same in paths.items() if len(same) > 1 and name not in ROOM_SAYS_ALL] == []


def test_a_package_has_few_modules() -> None:
    modules = defaultdict(list)
    for path in MODULES:
        modules[path.parent.relative_to(PRODUCT).as_posix()].append(path.name)
    assert {
        package: names
        for package, names in modules.items()
        if len(names) > MOST_MODULES and package not in MANY_MODULES
    } == {}


def test_a_file_is_short() -> None:
    lines = {path.relative_to(PRODUCT).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_frozen_classes_have_one_decorator() -> None:
    """The standard one makes each start slower, see :mod:`spegel_consul.lean.dataclass`."""
    frozen = [path for path in FILES if "@dataclass(frozen=True, slots=True)\n" in path.read_text()]
    lean = "from spegel_consul.lean.dataclass import dataclass\n"
    assert [path.name for path in frozen if lean not in path.read_text()] == []
    assert len(frozen) > 80
