# What containerd does with a download, step by step (content/local/writer.go): a directory with ref, total and data,
# bytes at the end of data, and then a rename of data to the blobs' directory or a deletion of it all.

"""The content directory of a containerd, written as it writes it."""

from __future__ import annotations

import hashlib
import shutil
from itertools import count
from pathlib import Path

from spegel_consul.oci.digest import Digest

_number = count(1)


class FakeContentStore:
    """A content store at ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "ingest").mkdir(parents=True)
        (root / "blobs/sha256").mkdir(parents=True)

    def begin(
        self, body: bytes, *, namespace: str = "k8s.io", total: bytes | None = b"", kind: str = "layer"
    ) -> FakeIngest:
        """Begin the download of ``body``. ``total``: what the file says, by default the truth; None for no file."""
        digest = Digest.of(body)
        if total == b"":
            total = str(len(body)).encode()
        return FakeIngest(self, body, f"{namespace}/{next(_number)}/{kind}-{digest}".encode(), total)

    def blob(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.replace(":", "/")


class FakeIngest:
    """A download under way, in ``path``."""

    def __init__(self, store: FakeContentStore, body: bytes, ref: bytes, total: bytes | None) -> None:
        self.body = body
        self.digest = Digest.of(body)
        self.path = store.root / "ingest" / hashlib.sha256(ref).hexdigest()
        self._store = store
        self.path.mkdir()
        (self.path / "ref").write_bytes(ref)
        if total is not None:
            (self.path / "total").write_bytes(total)
        (self.path / "data").touch()

    async def grow(self, size: int) -> None:
        """Have ``size`` bytes in the file."""
        with (self.path / "data").open("ab") as file:
            file.write(self.body[file.tell() : size])

    async def commit(self) -> None:
        await self.grow(len(self.body))
        (self.path / "data").rename(self._store.blob(self.digest))
        shutil.rmtree(self.path)
        self._store.blob(self.digest).chmod(0o444)

    async def abort(self) -> None:
        shutil.rmtree(self.path)
