"""What .ci/install-locked removes from an environment: files of the named packages, and nobody else's."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / ".ci/trim_packages.py"))

LIBP2P = [
    "libp2p/__init__.py",
    "docs/conf.py",
    "docs/__pycache__/conf.pyc",
    "examples/ping/ping.py",
    "../bin/ping-demo",
]
NETADDR = [
    "netaddr/__init__.py",
    "netaddr/eui/oui.txt",
    "netaddr/eui/oui.idx",
    "netaddr/eui/__init__.py",
    "netaddr/tests/x.py",
]
OTHERS = ["docs/mine.py", "examples/__init__.py", "examples/ping/mine.py", "trio/_tests/mine.py"]
REMOVED = [*LIBP2P[1:], NETADDR[1], NETADDR[2], NETADDR[4]]


def install(site: Path, name: str, files: list[str]) -> None:
    """Write a package's files and its record, as pip does."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(site, files)
    record = [*files, f"{about.name}/METADATA", f"{about.name}/RECORD"]
    (about / "RECORD").write_text("".join(f"{each},,\n" for each in record))


def write(site: Path, files: list[str]) -> None:
    for each in files:
        (site / each).parent.mkdir(parents=True, exist_ok=True)
        (site / each).write_text(each)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = tmp_path / "venv/lib"
    install(made, "libp2p", LIBP2P)
    install(made, "netaddr", NETADDR)
    return made


def left(site: Path) -> set[str]:
    return {str(path.relative_to(site.parent)) for path in site.parent.rglob("*") if path.is_file()}


def test_files_of_the_named_packages_are_removed_and_folders_that_are_empty(site: Path) -> None:
    before = left(site)
    assert SCRIPT["trim"](site, site.parent / "bin") == len(REMOVED)
    gone = {str(Path("lib") / each) for each in REMOVED if not each.startswith("../")} | {"bin/ping-demo"}
    assert before - left(site) == gone
    assert not (site / "docs").exists()
    assert not (site / "netaddr/tests").exists()
    assert (site / "netaddr/eui").is_dir()
    assert SCRIPT["trim"](site, site.parent / "bin") == 0, "a second time nothing is left to remove"


def test_files_of_others_in_folders_of_the_same_names_stay(site: Path) -> None:
    write(site, OTHERS)
    install(site, "mine", ["docs/ours.py"])
    SCRIPT["trim"](site, site.parent / "bin")
    for each in (*OTHERS, "docs/ours.py"):
        assert (site / each).read_text() == each
    assert not (site / "docs/conf.py").exists()


def test_nothing_outside_of_the_environment_is_removed(tmp_path: Path) -> None:
    site = tmp_path / "opt/venv/lib"
    install(site, "libp2p", ["libp2p/__init__.py", "../../../bin/ls", "../bin/ping-demo", "elsewhere/linked.py"])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/linked.py").write_text("kept")
    for path in (site / "elsewhere").iterdir():
        path.unlink()
    (site / "elsewhere").rmdir()
    (site / "elsewhere").symlink_to(tmp_path / "kept")
    assert SCRIPT["trim"](site, None) == 0
    assert (tmp_path / "bin/ls").exists()
    assert (tmp_path / "kept/linked.py").exists()
    assert (site / "../bin/ping-demo").exists()


def test_no_package_of_the_list_leaves_folders_of_such_names_at_the_top() -> None:
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/run.txt").read_text(), re.M)
    left = []
    for name in locked:
        removed = SCRIPT["REMOVED"].get(name)
        for entry in importlib.metadata.files(name) or ():
            if entry.parts[0] in ("docs", "examples", "test", "tests") and not (removed and removed.match(str(entry))):
                left.append(f"{name}: {entry}")
    assert locked
    assert left == []
