# A base for images, made of what this machine has, because tests reach no registry of images: its own Python with the
# packages that the product needs, the shared libraries under them, a shell.  It stands in for a slim image of Python
# and so has an apt-get too, which has nothing left to do.

"""A root file system with Python, for ``docker import``."""

from __future__ import annotations

import importlib.metadata
import io
import re
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from lab import parts
from lab.process import run

_LEFT_OUT = {
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "site-packages",
}
_PASSWD = "root:x:0:0:root:/root:/bin/sh\n"
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": "/usr/local/lib"}
_PIP = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_ROOT_USER_ACTION": "ignore"}
CHANGES = [f"ENV {name}={value}" for name, value in (_ENV | _PIP).items()]
"""For ``docker import --change``."""


def assemble(tar: Path, *distributions: str) -> None:
    """Write a root file system with Python and ``distributions``, and whatever they require, to ``tar``."""
    binary = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries: set[Path] = {binary}
    with tarfile.open(tar, "w") as out:
        _directories(out, "tmp", "etc", "root", "proc", "sys", "dev", "var/lib", "usr/bin", "usr/local/bin")
        _text(out, "etc/passwd", _PASSWD)
        _text(out, "etc/group", "root:x:0:\n")
        _text(out, "usr/bin/apt-get", "#!/bin/sh\nexit 0\n", 0o755)
        out.add(parts.busybox(), "bin/busybox")
        for applet in run([parts.busybox(), "--list"]).split():
            if applet != "busybox":
                _link(out, f"bin/{applet}", "busybox")
        out.add(binary, f"usr/local/bin/{version}")
        _link(out, "usr/local/bin/python3", version)
        standard = Path(sysconfig.get_path("stdlib"))
        for path in _tree(standard):
            out.add(path, f"usr/local/lib/{version}/{path.relative_to(standard)}", recursive=False)
            libraries |= {path} if path.suffix == ".so" else set()
        for path, name in _files(distributions):
            out.add(path, f"usr/local/lib/{version}/site-packages/{name}", recursive=False)
            libraries |= {path} if ".so" in path.suffixes else set()
        for library in _needed(libraries):
            # where the loader of the host finds them, or beside Python's own
            name = str(library).lstrip("/") if str(library).startswith(("/lib", "/usr/lib")) else ""
            out.add(library.resolve(), name or f"usr/local/lib/{library.name}")


def _files(distributions: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    seen = set(left_out())
    waiting = list(distributions)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            inside = ".." not in file.parts and "tests" not in file.parts
            if inside and file.suffix not in (".pyi", ".pth") and path.is_file() and name != "spegel-consul":
                yield path, str(file)


def left_out() -> dict[str, str]:
    """The packages that are required and not installed, and why."""
    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["lock"]["left-out"]
    return {str(name): str(reason) for name, reason in table.items()}


def _tree(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name not in _LEFT_OUT and path.suffix != ".a" and not path.is_symlink():
            yield path
            if path.is_dir():
                yield from _tree(path)


def _needed(libraries: set[Path]) -> set[Path]:
    """What ``ldd`` says of all of them together."""
    said = run(["ldd", *sorted(map(str, libraries))], timeout=60)
    found = re.findall(r"=> (/\S+)|^\s+(/\S+) \(", said, re.M)
    return {Path(one or other) for one, other in found}


def _directories(out: tarfile.TarFile, *names: str) -> None:
    for name in names:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        out.addfile(entry)


def _text(out: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text), mode
    out.addfile(entry, io.BytesIO(text.encode()))


def _link(out: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    out.addfile(entry)
