"""The runtime's downloads in progress: containerd's ingests, read from its content store.

    ROOT/ingest/<sha256 of ref>/{ref,total,data}      ref = <namespace>/<number>/<kind>-<digest>
    ROOT/blobs/sha256/<hex>                           data, renamed by the commit

containerd (1.6 to 2.1, and the one of Docker) makes the directory before it asks a registry, and appends to ``data`` in
pieces of 1 MiB. The commit renames ``data``, so an open descriptor stays good. An aborted download is deleted.
``Content.ListStatuses`` says less than the directory and costs ten times as much.

A look lists the directory in a thread. Calls share a look for 50 ms, because many transfers wait for one download. A
look that found none counts until the directory changes, because each miss of an idle node asks whether it is idle. Of
more than 4096 ingests the newest are read, because a failed pull may leave some and a new one is what is asked for. A
digest that nobody asked for lately gets a look of its own, because the runtime makes the ingest a few milliseconds
before its request.

Only ingests of the given namespace are shown. A blob is shown only if its ingest was seen here in the last minutes,
because blobs of all namespaces are in one directory, and the index alone knows which are this namespace's.

The files are another program's: links, FIFOs and long files are refused by ``disk.foreign_files``, a ref must be of the
form above from its first byte to its last, and a hanging disk takes one thread and no caller longer than ``WITHIN``.

A new rule about the downloads that may be shown belongs here.
"""

from __future__ import annotations

import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from functools import partial
from heapq import nlargest
from itertools import islice
from pathlib import Path

import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.disk import foreign_files
from spegel_consul.disk.threads import open_in_thread
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Downloads
from spegel_consul.store.blob_files import blob_file, changed_at
from spegel_consul.zerocopy.growing_file import GrowingFile

log = structlog.get_logger(__name__)

SHARED = 0.05
"""Seconds for which calls share a look."""

WITHIN = 2.0
"""Seconds that a look, or opening a file, may take."""

SEEN_FOR = 180.0
"""Seconds after its last look as an ingest in which the blob is shown."""

_ASKED_LATELY = 1.0  # seconds in which a digest counts as one that is waited for
_MOST = 4096  # directories that a look reads, the newest ones, and digests that are remembered
_MOST_LISTED = 32_768  # directories among which the newest are chosen; failed pulls of other programs may leave many
_LONGEST_SHARED = 1.0  # seconds for which calls share a look that takes long
_MOST_EACH = 8  # ingests of one digest that are tried
_TICK = 2_500_000_000  # nanoseconds; some file systems store times in whole seconds
_MAX_REF = 512  # bytes
_MAX_TOTAL = 32  # bytes
_TOTAL = re.compile(rb"[0-9]{1,15}")
_KEY = r"/[0-9]{1,20}/[A-Za-z0-9_.+-]{1,64}-(sha256:[0-9a-f]{64})"


@dataclass(frozen=True, slots=True)
class Look:
    """The ingests of the namespace: their directories' names by digest, and the bytes of all (None: no ingest)."""

    names: Mapping[Digest, Sequence[str]] = field(default_factory=dict)
    size: int | None = None
    sizes: Mapping[Digest, int] = field(default_factory=dict)
    """Bytes of the longest ingest of each digest."""
    empty_until: int | None = None
    """There is no ingest for certain as long as this is the time of the directory's last change, 0 if it is missing."""


class IngestDirectory:
    """Lists the ingests of ``namespace``; refs are read once. For one thread at a time."""

    def __init__(self, namespace: str) -> None:
        self._ref = re.compile(re.escape(namespace) + _KEY)
        self._digests: dict[str, Digest | None] = {}
        """Digest by name of directory; None for a ref of another namespace, or one that names no digest."""

    def look(self, root: Path) -> Look:
        """List the ingests below the content store ``root``. Raises OSError if the directory can't be listed."""
        ingest = f"{root}/ingest"
        found: list[os.DirEntry[str]] = []
        listed: list[str] = []
        changed, now = 0, time.time_ns()
        with suppress(FileNotFoundError):
            changed = Path(ingest).stat().st_mtime_ns  # before it is listed
        with suppress(FileNotFoundError), os.scandir(ingest) as entries:
            found = [each for each in islice(entries, _MOST_LISTED) if each.is_dir(follow_symlinks=False)]
            listed = [each.name for each in (found if len(found) <= _MOST else nlargest(_MOST, found, key=_changed))]
        known: dict[str, Digest | None] = {}
        for name in listed:
            with suppress(OSError):  # the file follows in a moment, or is none of containerd's
                known[name] = self._digests[name] if name in self._digests else self._read(f"{ingest}/{name}/ref")
        self._digests = known
        # a later change could bear the same time
        is_sure = len(known) == len(found) and now - changed > _TICK
        return replace(_found(ingest, known), empty_until=changed if is_sure and not any(known.values()) else None)

    def _read(self, path: str) -> Digest | None:
        """Return the digest in a ref. Raises OSError if the file is not there, not yet written, or no ref at all."""
        ref = foreign_files.read(path, _MAX_REF, follow=False)
        if not ref:
            raise FileNotFoundError(f"{path} is empty")
        matched = self._ref.fullmatch(ref.decode(errors="replace"))
        return None if matched is None else Digest(matched[1])


def _changed(entry: os.DirEntry[str]) -> int:
    """Return the time at which the runtime began the ingest, or went on with it; 0 if it is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0


def _found(ingest: str, known: Mapping[str, Digest | None]) -> Look:
    names: dict[Digest, list[str]] = {}
    sizes: dict[Digest, int] = {}
    size = 0
    for name, digest in known.items():
        if digest is None:
            continue
        names.setdefault(digest, []).append(name)
        with suppress(OSError):
            status = os.lstat(f"{ingest}/{name}/data")
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
                sizes[digest] = max(sizes.get(digest, 0), status.st_size)
    return Look(names, size if names else None, sizes)


def open_download(root: Path, digest: Digest, names: Sequence[str]) -> GrowingFile:
    """Open the ingest of ``digest`` in one of the directories ``names``, or its blob if it was committed meanwhile.

    Raises OSError if neither can be opened. A ``total`` that is missing, no number, zero, or less than the bytes that
    are there already is not known.
    """
    directories = [f"{root}/ingest/{name}" for name in names[:_MOST_EACH]]
    opened: list[GrowingFile] = []
    found: GrowingFile | None = None
    try:
        found = _choose(root, digest, directories, opened)
        return found
    finally:  # also if the file system has lost one of them
        for file in opened:
            if file is not found:
                file.close()


def _choose(root: Path, digest: Digest, directories: Sequence[str], opened: list[GrowingFile]) -> GrowingFile:
    """Return the file to show; all files that were opened are in ``opened``."""
    growing = _longest(directories, opened)
    if growing is not None and growing.total is not None:
        return growing
    try:
        blob = _open_blob(root, digest, opened)
    except OSError:
        if growing is None:
            raise
        return growing
    # a commit renames data and then deletes the directory, so a missing file may tell of a commit; a blob beside an
    # ingest that goes on is another namespace's
    if growing is not None and not os.path.sameopenfile(growing.fd, blob.fd):
        return growing
    if growing is None and any(map(os.path.lexists, directories)):
        raise FileNotFoundError(f"the download of {digest} has not begun, or is being committed")
    return blob


def _longest(directories: Iterable[str], opened: list[GrowingFile]) -> GrowingFile | None:
    """Open the ingest that has most bytes."""
    best: GrowingFile | None = None
    for directory in directories:
        with suppress(OSError):
            file = GrowingFile(foreign_files.open_regular(f"{directory}/data", follow=False), None)
            opened.append(file)
            # total is read after data was opened, because containerd writes it before
            file.total = _total(f"{directory}/total", file.size())
            if not file.abandoned() and (best is None or file.size() > best.size()):
                best = file
    return best


def _total(path: str, size: int) -> int | None:
    try:
        text = foreign_files.read(path, _MAX_TOTAL, follow=False)
    except OSError:
        return None
    total = int(text) if _TOTAL.fullmatch(text) else 0
    return total if total > 0 and total >= size else None


def _open_blob(root: Path, digest: Digest, opened: list[GrowingFile]) -> GrowingFile:
    file = GrowingFile(foreign_files.open_regular(blob_file(root, digest), follow=False), None, committed=True)
    opened.append(file)
    file.total = file.size()
    return file


class Ingests:
    """The downloads of ``namespace``.

    ``root()``: the root of the content store, None while it is not known. ``gone`` is called on the event loop with
    each digest whose ingest a look does not find any more: it was committed or aborted.
    """

    def __init__(self, root: Callable[[], Path | None], namespace: str, gone: Callable[[Digest], object]) -> None:
        self._root = root
        self._gone = gone
        self._directory = IngestDirectory(namespace)
        self._calls = foreign_files.FileCalls(WITHIN)
        self._opening = trio.CapacityLimiter(4)
        self._lock = trio.Lock()
        self._last = Look()
        self._began = -math.inf
        self._shared = SHARED
        self._seen: BoundedDict[Digest, float] = BoundedDict(_MOST)
        self._asked: BoundedDict[Digest, float] = BoundedDict(_MOST)
        self._said_unreadable = False

    async def open(self, digest: Digest) -> GrowingFile | None:
        """Open the download of ``digest``, or its blob if the ingest was seen lately. The caller closes it."""
        await trio.lowlevel.checkpoint()
        root, now = self._root(), trio.current_time()
        if root is None:
            return None
        waited_for = now - self._asked.get(digest, -math.inf) <= _ASKED_LATELY
        self._asked.drop_oldest(lambda at: now - at > _ASKED_LATELY)
        self._asked[digest] = now
        if not await self._look(root, now - self._shared if waited_for else now):
            return None
        if trio.current_time() - self._seen.get(digest, -math.inf) > SEEN_FOR:
            return None
        opened: list[GrowingFile] = []
        with suppress(OSError), trio.move_on_after(WITHIN):
            await open_in_thread(
                partial(_open_into, opened, root, digest, self._last.names.get(digest, ())), self._opening
            )
            return opened[0]
        return None

    async def downloads(self, refuses: Callable[[Digest], bool] = lambda digest: False) -> Downloads:
        """Return all downloads, by one look that begins now, without the digests that the index ``refuses``.

        If the look fails, the last one counts.
        """
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        if (root := self._root()) is not None:
            await self._look(root, now)
        growing = {digest: size for digest, size in self._last.sizes.items() if not refuses(digest)}
        ended = (digest for digest, at in self._seen.items() if now - at <= SEEN_FOR and not refuses(digest))
        return Downloads(growing, frozenset(ended) - self._last.names.keys())

    async def at_work(self) -> int | None:
        """Return the bytes of all downloads together, None if there is none; the last known if a look fails."""
        root, since = self._root(), trio.current_time() - self._shared
        if root is not None and self._began < since and not self.is_idle():
            await self._look(root, since)
        return self._last.size

    def is_idle(self) -> bool:
        """Return whether there is no download for certain, without a look."""
        root = self._root()
        if self._last.size is not None or root is None:
            return self._last.size is None
        try:
            return changed_at(f"{root}/ingest") == self._last.empty_until
        except OSError:
            return False

    def forget(self, digest: Digest) -> None:
        """Do not show the blob of ``digest``, because it is not this namespace's."""
        self._seen.pop(digest, None)

    async def _look(self, root: Path, since: float) -> bool:
        """Make a look that began at ``since`` or later the last one; return False if it failed."""
        async with self._lock:
            began = trio.current_time()
            if self._began >= since:
                return True
            try:
                look = await self._calls.run(partial(self._directory.look, root))
            except OSError as exc:
                self._say_unreadable(root, exc)
                return False
            before, self._last, self._began = self._last, look, began
            # ten thousands of directories that a program has left must not take a core
            self._shared = min(max(SHARED, 4 * (trio.current_time() - began)), _LONGEST_SHARED)
        for digest in look.names:
            self._seen.drop_oldest(lambda at: began - at > SEEN_FOR)
            self._seen[digest] = began
        for digest in before.names.keys() - look.names.keys():
            self._gone(digest)
        return True

    def _say_unreadable(self, root: Path, exc: OSError) -> None:
        if not self._said_unreadable:
            self._said_unreadable = True
            log.warning(
                "containerd's downloads can't be read, so other nodes wait until they are complete:"
                " give this process the right to read the directory",
                directory=f"{root}/ingest",
                reason=in_words(exc),
            )


def _open_into(opened: list[GrowingFile], root: Path, digest: Digest, names: Sequence[str]) -> int:
    """Open the download for ``opened`` and return its descriptor, which open_in_thread closes if nobody waits."""
    file = open_download(root, digest, names)
    opened.append(file)
    return file.fd
