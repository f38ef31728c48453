# An installation has the packages of requirements/run.txt, which must be all that the product imports.  In CI nothing
# but that list and the tools of the tests is installed, so each other test tests it too; this one does on any machine.

"""The list of packages that is installed: pyproject.toml's requirements, less what nothing imports."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lab.process import HANG
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ("run.txt", "build.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LEFT_OUT: dict[str, str] = PROJECT["tool"]["lock"]["left-out"]
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}

IMPORT = """
import ast, importlib, importlib.metadata, pkgutil, sys
from pathlib import Path

installed = {"spegel_consul", *sys.stdlib_module_names}
for name in sys.argv[1:]:
    for file in importlib.metadata.distribution(name).files or ():
        installed.add(file.parts[0].partition(".")[0])

class Refuse:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in installed:
            raise ModuleNotFoundError(f"{name} is not in requirements/run.txt", name=name)

sys.meta_path.insert(0, Refuse())
import spegel_consul
names = {module.name for module in pkgutil.walk_packages(spegel_consul.__path__, "spegel_consul.")}
names.discard("spegel_consul.__main__")
for file in Path(spegel_consul.__path__[0]).rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
for name in sorted(names, key=lambda name: (not name.startswith("spegel_consul"), name)):
    importlib.import_module(name)

# what is imported by a call
import dns.asyncresolver, grpc, httpx, trio
from multiaddr import Multiaddr

for text in "/ip4/192.0.2.1/tcp/5001", "/ip6/2001:db8::1/tcp/5001":
    assert str(Multiaddr(text)) == text

async def ask():
    async with httpx.AsyncClient(verify=False) as client:
        try:
            await client.get("https://127.0.0.1:1/")
        except httpx.ConnectError:
            return "refused"

assert trio.run(ask) == "refused"
resolver = dns.asyncresolver.Resolver(configure=False)
resolver.nameservers = ["127.0.0.1"]
grpc.insecure_channel("unix:///nowhere").close()
print(len(names))
"""


def locked(name: str) -> dict[str, str]:
    """The versions in a list by the names of their packages."""
    text = (ROOT / "requirements" / name).read_text()
    return {canonicalize_name(package): version for package, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


@pytest.mark.parametrize("name", LISTS)
def test_each_package_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.split(r"^(?=[\w.]+[\w.-]*==)", text, flags=re.M)
    assert len(entries) == len(locked(name)) + 1
    for entry in entries[1:]:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), entry
    assert "://" not in text
    assert "index" not in text


def test_what_is_required_is_in_the_list() -> None:
    run = locked("run.txt")
    for text in PROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(run[canonicalize_name(requirement.name)]), text
    for text in PROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked("build.txt")[canonicalize_name(requirement.name)]), text


def test_what_a_package_requires_is_in_the_list_or_left_out_with_a_reason() -> None:
    run, missed = locked("run.txt"), set()
    for name, version in run.items():
        assert importlib.metadata.version(name) == version, f"{name}: run make dev-install"
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(LINUX):
                required = canonicalize_name(requirement.name)
                if required in run:
                    assert requirement.specifier.contains(run[required]), f"{name} requires {text}"
                else:
                    missed.add(required)
    assert missed == set(LEFT_OUT)
    assert all(len(reason.split()) >= 1 for reason in LEFT_OUT.values())


def test_all_of_the_product_is_imported_with_nothing_else_than_the_list() -> None:
    command = [sys.executable, "-c", IMPORT, *locked("run.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 300


def test_what_is_built_of_source_needs_no_compiler() -> None:
    """Two packages have no wheel; both are one plain module."""
    options = re.findall(r"^--(.*)", (ROOT / "requirements/run.txt").read_text(), re.M)
    assert options == ["only-binary :all:", "no-binary python-baseconv,varint"]
    for name in ("python-baseconv", "varint"):
        files = importlib.metadata.distribution(name).files or ()
        assert {file.suffix for file in files if ".dist-info" not in str(file)} <= {".py", ".pyc"}, name
