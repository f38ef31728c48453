"""Removes what packages of requirements/run.txt install beside what runs: examples, documentation, tests, a card index.

python .ci/trim_packages.py SITE [SCRIPTS]     SITE: where packages are; SCRIPTS: where their programs are

Only files that pip's record of such a package names are removed, and then folders that are empty. So an environment
with other packages, or with modules of its own named docs or examples, keeps them.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

REMOVED = {
    # beside libp2p/ it installs packages named examples, docs, interop, newsfragments and stubs, and their programs
    "libp2p": re.compile(r"(?!libp2p[/-])"),
    "noiseprotocol": re.compile(r"examples/"),
    # registries of Ethernet cards
    "netaddr": re.compile(r"netaddr/tests/|netaddr/eui/[^/]*\.(txt|idx)$"),
    "trio": re.compile(r"trio/_tests/"),
}
"""By the package: what the paths in its record begin with."""


def trim(site: Path, scripts: Path | None) -> int:
    """Return the number of files that were removed."""
    site = site.resolve()
    allowed = [site, *([scripts.resolve()] if scripts else [])]
    count = 0
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        removed = REMOVED.get(distribution.metadata["Name"].lower())
        for entry in (distribution.files or ()) if removed else ():
            path = (site / entry).parent.resolve() / entry.name
            # a record of pip's --target names programs by a place above it, which is not theirs
            if removed.match(str(entry)) and any(path.is_relative_to(each) for each in allowed) and path.is_file():
                path.unlink()
                count += 1
                _remove_empty(path.parent, allowed)
    return count


def _remove_empty(folder: Path, allowed: list[Path]) -> None:
    """Remove a folder, and those above it, as long as nothing is in it."""
    while folder not in allowed and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


if __name__ == "__main__":
    trim(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
