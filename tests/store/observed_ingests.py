"""Ingests in a directory that a test fills."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fakes.content_store import FakeContentStore

from spegel_consul.oci.digest import Digest
from spegel_consul.store.containerd import ingests
from spegel_consul.store.containerd.ingests import Ingests

NOWHERE = Path("/nonexistent/containerd.sock")


class Observed:
    """Ingests of a directory, the digests that are gone, and the number of looks."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content = FakeContentStore(root)
        self.gone: list[Digest] = []
        self.looks = 0
        self.hangs: threading.Event | None = None
        self.ingests = Ingests(lambda: root, "k8s.io", self.gone.append)
        directory = self.ingests._directory
        look = directory.look

        def counted(root: Path) -> ingests.Look:
            self.looks += 1
            if self.hangs is not None:
                self.hangs.wait(60)
            return look(root)

        monkeypatch.setattr(directory, "look", counted)


@pytest.fixture
def observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observed:
    return Observed(tmp_path / "content", monkeypatch)
