"""``KeptIdentity``: the last certificate of Consul, kept over restarts.

The agent has keys and certificates in its memory only. If the sidecar and the agent restart while Consul's servers are
away, the agent has none to give, and a node without certificate is of no use to its peers. So the last certificate, its
key and the authorities are in a file in the data directory that only its owner can read, beside the node's own key.
Nothing depends on the file: if it is missing, damaged or can't be written, one line is logged.

A new rule about that file belongs here.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import structlog

from spegel_consul.consul.api.client import Leaf, Roots
from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

IDENTITY_FILE = "consul-leaf.json"
_MAX_BYTES = 1 << 20
_WITHIN = 1.0  # seconds for a call to the disk


class KeptIdentity:
    """The certificate in a file in ``data_dir``; None for a node that keeps no data."""

    def __init__(self, data_dir: Path | None) -> None:
        self._path = data_dir / IDENTITY_FILE if data_dir is not None else None
        self._calls = foreign_files.FileCalls(_WITHIN)
        self._report = ProblemReport(log, "certificate is not kept")

    async def load(self) -> tuple[Leaf, Roots] | None:
        """The certificate of the last run; takes at most a second."""
        if self._path is None:
            return None
        try:
            return await self._calls.run(partial(_load, self._path))
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._report.tell(f"cannot read {self._path}: {in_words(exc)}")
        except (ValueError, TypeError, KeyError, RecursionError):
            self._report.tell(f"{self._path} is damaged and will be replaced")
        return None

    async def save(self, leaf: Leaf, roots: Roots) -> None:
        """Replace the file; takes at most a second."""
        if self._path is None:
            return
        try:
            await self._calls.run(partial(_save, self._path, leaf, roots))
        except OSError as exc:
            self._report.tell(f"cannot write {self._path}: {in_words(exc)}")
        else:
            self._report.tell(None)


def _load(path: Path) -> tuple[Leaf, Roots]:
    document = json.loads(foreign_files.read(path, _MAX_BYTES, follow=False))
    leaf = {name: str(value) for name, value in document["leaf"].items()}
    roots = document["roots"]
    return Leaf(**leaf), Roots(str(roots["trust_domain"]), tuple(map(str, roots["certificates"])))


def _save(path: Path, leaf: Leaf, roots: Roots) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"leaf": asdict(leaf), "roots": asdict(roots)}).encode()
    foreign_files.write(path, content, mode=0o600)
