# actionlint knows GitHub's side of these files (.ci/lint-workflows); this is about what they name on our side.

"""The workflow files and the release name things that exist, and versions that agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lab.process import HANG

from spegel_consul import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_is_called_exists(path: Path) -> None:
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:run:|-) make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for script in re.findall(r"(\.ci/[\w.-]+)", text):
        assert os.access(ROOT / script, os.X_OK) or script.endswith(".py"), script
    for file in re.findall(r"file: (\S+)", text):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_few_and_versions_are_named(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^permissions:\n  contents: read\n", text, re.M)
    for action in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    assert text.count("runs-on:") == text.count("timeout-minutes:")
    # an expression in a script is text that somebody else may have written
    for script in re.findall(r"run: (?!\$\{\{ matrix\.run \}\}$)(.*(?:\n +(?!- )[^:\n]*$)*)", text, re.M):
        assert "${{" not in script, script


def test_a_release_has_the_artifacts_of_its_own_jobs_alone() -> None:
    # the action that builds the image uploads an artifact, too
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"] if "-artifact@" in step.get("uses", "")]
    *names, pattern = [step["with"].get("name") or step["with"]["pattern"] for step in steps]
    assert pattern == "dist-*"
    assert len(names) == 2
    assert all(name.startswith("dist-") for name in names)


def test_the_pythons_are_those_of_the_lock_and_of_the_classifiers() -> None:
    (pythons,) = re.findall(r"^PYTHONS = \((.*)\)$", (ROOT / ".ci/lock").read_text(), re.M)
    locked = {f"3.{python[1:]}" for python in re.findall(r"\d+", pythons)}
    for name in ("ci.yml", "release.yml"):
        (matrix,) = re.findall(r"python: \[(.*)\]", (ROOT / ".github/workflows" / name).read_text())
        assert set(re.findall(r"3\.\d+", matrix)) == locked
    assert set(re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())) <= locked


def test_a_release_needs_versions_that_agree_and_a_section_of_the_changelog(tmp_path: Path) -> None:
    script = tmp_path / ".ci/release-version"
    for name in (".ci/release-version", "docker/Dockerfile", "spegel_consul/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(
        f"# Changelog\n\n## [{__version__}] - 2026-11-30\n\nFast.\n\n## [0.0.1] - 2026-01-01\n\nSlow.\n"
    )
    done = run(script, f"v{__version__}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Fast.\n", "")
    for tag, says in (("main", "is no version"), ("", "is no version"), ("v9.9.9", "says 0.1.0, and the tag 9.9.9")):
        done = run(script, tag)
        assert done.returncode == 1
        assert says in done.stderr
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\nFast.\n")
    done = run(script, f"v{__version__}")
    assert done.returncode == 1
    assert "rename its section Unreleased" in done.stderr


def test_the_bill_of_materials_has_each_package_of_the_list() -> None:
    done = run(ROOT / ".ci/bill_of_materials.py", __version__)
    found = json.loads(done.stdout)
    listed = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements/run.txt").read_text(), re.M)
    assert [(part["name"], part["version"]) for part in found["components"]] == listed
    assert found["metadata"]["component"]["version"] == __version__
    (root,) = found["dependencies"]
    assert root["dependsOn"] == [f"pkg:pypi/{name}@{version}" for name, version in listed]
