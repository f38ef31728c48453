"""The index behind every store: the digests and names that the node can serve. No I/O, no clock, no locks.

Image records (a name and the descriptor of the root), content records (digest, size, repositories of origin) and parsed
manifests go in. From these the index derives, for each digest, whether it is served and with which media type, and for
each name, whether it is announced. The rules:

* A name is announced if it is full and tagged, if the filter accepts it, and if its image is whole: all of a manifest,
  or of one platform of an index. containerd also keeps names with a digest, which only hold content.
* A name is announced in the one canonical name of its registry, because requests use that. If several records have the
  same canonical name, the record with that exact name counts, else the first one by name.
* Content that an image holds is served if one of its images is accepted. Content of refused images only is not served,
  whatever its labels say.
* Content that no named image holds is served in two cases. In the first, a record whose name is a bare digest holds it:
  the content was put there on purpose, and there is no name to filter. In the second, a repository that it was pulled
  from is accepted: so a pull in progress is a source before it has ended, and so is an image whose tag has moved, which
  Docker keeps as ``moby-dangling@sha256:...``. Other loose content (builds without a tag, leftovers) is not served.
* The media type of a manifest is the one in the manifest, because its digest proves it, and clients compare the two.
  Otherwise it is the one in the descriptor of the manifest, if that fits its shape, else a guess from its shape.

Manifests are content, so the index can't follow an image before it has their bytes. unread() names the needed ones,
learn() takes them, and settle() returns the changes. Only the consequences of a change are computed anew: images
remember the digests that they reach, and digests remember the images that hold them.

A new rule about the content that may be served or announced belongs here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import field, replace

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import INDEXES, MANIFESTS, MAX_MANIFEST_SIZE, OCTET_STREAM
from spegel_consul.oci.reference import Reference
from spegel_consul.store import Changed, Image
from spegel_consul.store.manifest_walk import Document, is_manifest_type

MAX_DEPTH = 8
"""Largest depth of nested indexes; real ones have a depth of one or two."""


def everything(name: str) -> bool:
    """The filter that accepts every image name."""
    return True


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image record of the runtime: any name, and the descriptor of its manifest or index.

    ``updated_at``: the Unix time at which the runtime wrote it, in seconds, and ``labels`` are for
    :mod:`spegel_consul.store.tag_times`; two records that differ in nothing else are the same image.
    """

    name: str
    target: Descriptor
    updated_at: float | None = field(default=None, compare=False)
    labels: tuple[tuple[str, str], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Content:
    """Complete content of the node. ``sources``: repositories of origin, such as ``docker.io/library/app``."""

    digest: Digest
    size: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All records of a runtime at one time."""

    images: tuple[ImageRecord, ...] = ()
    contents: tuple[Content, ...] = ()


@dataclass(slots=True)
class _Held:
    """An image record and its consequences.

    ``named``: the record has a name to filter, and not only a digest; ``announces``: the canonical name that it is
    announced by, if any; ``reach``: the digests that the image consists of, with their media types.
    """

    record: ImageRecord
    named: bool
    accepted: bool
    announces: str | None
    reach: dict[Digest, str] = field(default_factory=dict)


class Index:
    """The index.

    ``accept`` is the filter. It is called with full names, ``registry/repository:tag`` or ``…@digest``, and with any
    other name of a runtime's image.
    """

    def __init__(self, accept: Callable[[str], bool] = everything) -> None:
        self._accept = accept
        self._images: dict[str, _Held] = {}
        self._content: dict[Digest, Content] = {}
        self._documents: dict[Digest, Document | None] = {}
        self._holders: dict[Digest, tuple[str, ...]] = {}
        """Names of images; tuples, because most content has one holder, and a set takes 216 bytes."""
        self._served: dict[Digest, Descriptor] = {}
        self._names: dict[str, Digest] = {}
        self._records: defaultdict[str, set[str]] = defaultdict(set)
        """Names of records, by the canonical name that they would be announced by."""
        self._unwalked: set[str] = set()
        self._unsettled: set[Digest] = set()
        self._unsettled_names: set[str] = set()
        self._unread: dict[str, set[Digest]] = {}
        self.version = 0

    # Served content and names, as of the last settle()

    def resolve(self, name: str) -> Digest | None:
        return self._names.get(name)

    def describe(self, digest: Digest) -> Descriptor | None:
        return self._served.get(digest)

    def images(self) -> tuple[Image, ...]:
        return tuple(Image(name, digest) for name, digest in sorted(self._names.items()))

    def keys(self) -> frozenset[str]:
        return frozenset(self._served).union(self._names)

    # Records

    def record_of(self, name: str) -> str | None:
        """Return the name of the record that counts for the announced name, or None."""
        records = self._records.get(name)
        return min(records, key=lambda each: (each != name, each)) if records else None

    def reached(self, record_name: str) -> frozenset[Digest]:
        """Return the digests of a record's image, present or not, as far as its manifests are known."""
        self._walk_changed()
        held = self._images.get(record_name)
        return frozenset(held.reach) if held else frozenset()

    def parts(self, name: str) -> frozenset[Digest]:
        """Return the digests of the announced image ``name``, present or not."""
        self._walk_changed()
        held = self._announcing(name)
        return frozenset(held.reach) if held else frozenset()

    def holders(self, digest: Digest) -> tuple[str, ...]:
        """Return the names of the images that hold the content, sorted."""
        return tuple(sorted(self._holders.get(digest, ())))

    def digests(self) -> frozenset[Digest]:
        """Return the digests of content that may be served."""
        return frozenset(self._served)

    def origins(self, digest: Digest) -> tuple[str, ...]:
        """Return the names of the content's images, or else the repositories that it was pulled from."""
        names = tuple(name for name in self._holders.get(digest, ()) if "/" in name)
        content = self._content.get(digest)
        return names or (content.sources if content is not None else ())

    def is_stray(self, digest: Digest) -> bool:
        """Whether the content is present, but neither an image nor a source of it is known yet."""
        content = self._content.get(digest)
        return content is not None and not content.sources and not self._holders.get(digest)

    def refuses(self, digest: Digest) -> bool:
        """Whether the content is present and known not to be for others, because the filter refuses its images."""
        return digest in self._content and not self.is_stray(digest) and self._descriptor(digest) is None

    def put_image(self, record: ImageRecord) -> None:
        """Add an image record, or change the target of an existing one."""
        held = self._images.get(record.name)
        if held is not None and held.record == record:
            return
        record = replace(record, target=self._shared(record.target))
        if held is None:
            held = self._classify(record)
            self._images[record.name] = held
            if held.announces is not None:
                self._records[held.announces].add(record.name)
        else:
            held.record = record
        self._unwalked.add(record.name)

    def drop_image(self, name: str) -> None:
        """Remove an image record, if it exists."""
        held = self._images.pop(name, None)
        if held is None:
            return
        self._hold(name, held.reach, {})
        self._unwalked.discard(name)
        self._unread.pop(name, None)
        if held.announces is not None:
            self._records[held.announces].discard(name)
            if not self._records[held.announces]:
                del self._records[held.announces]
            self._unsettled_names.add(held.announces)

    def put_content(self, content: Content) -> None:
        """Add complete content."""
        known = self._content.get(content.digest)
        if known == content:
            return
        self._content[content.digest] = content
        if resized := known is None or known.size != content.size:
            self._documents.pop(content.digest, None)  # the file was still being written when it was parsed
        self._touch(content.digest, walk=resized)

    def drop_content(self, digest: Digest) -> None:
        """Remove content, if it exists."""
        if self._content.pop(digest, None) is not None:
            self._documents.pop(digest, None)
            self._touch(digest, walk=True)

    def apply(self, snapshot: Snapshot) -> None:
        """Replace all records with those of ``snapshot``."""
        contents = {content.digest for content in snapshot.contents}
        for digest in self._content.keys() - contents:
            self.drop_content(digest)
        for content in snapshot.contents:
            self.put_content(content)
        names = {record.name for record in snapshot.images}
        for name in self._images.keys() - names:
            self.drop_image(name)
        for record in snapshot.images:
            self.put_image(record)

    def unread(self) -> tuple[Content, ...]:
        """Return content that must be read and parsed; answer each with learn() or drop_content().

        Repeat until nothing is returned, because the manifests of an image index are known only after it was read.
        Content that no image holds comes last, because a manifest that is still unread may say what it is.
        """
        self._walk_changed()
        digests = set().union(*self._unread.values()) or {
            digest
            for digest in self._unsettled
            if (content := self._content.get(digest)) is not None
            and content.size <= MAX_MANIFEST_SIZE
            and digest not in self._documents
            and not self._holders.get(digest)
            and self._source_accepted(content)
        }
        return tuple(self._content[digest] for digest in digests)

    def learn(self, digest: Digest, document: Document | None) -> None:
        """Take the parsed content that unread() returned; None if it is no manifest."""
        if digest in self._content:
            self._documents[digest] = document and document.with_children(self._shared)
            self._touch(digest, walk=True)

    def settle(self) -> Changed:
        """Compute the served content and announced names; return the changes since the last call."""
        self._walk_changed()
        if self._unsettled or self._unsettled_names:
            self.version += 1
        added: set[str] = set()
        removed: set[str] = set()
        for digest in self._unsettled:
            now = self._descriptor(digest)
            before = self._served.pop(digest, None)
            if now is not None:
                self._served[digest] = now
                if before is None:
                    added.add(digest)
            elif before is not None:
                removed.add(digest)
        for name in self._unsettled_names:
            held = self._announcing(name)
            before_digest = self._names.pop(name, None)
            if held is not None:
                self._names[name] = held.record.target.digest
                if before_digest is None:
                    added.add(name)
            elif before_digest is not None:
                removed.add(name)
        self._unsettled.clear()
        self._unsettled_names.clear()
        return Changed(frozenset(added), frozenset(removed))

    def _shared(self, child: Descriptor) -> Descriptor:
        """Return the descriptor with the digest that its content has, because another one takes 170 bytes."""
        content = self._content.get(child.digest)
        return Descriptor(content.digest, child.size, child.media_type) if content is not None else child

    def _classify(self, record: ImageRecord) -> _Held:
        name = record.name
        if "/" not in name and (name == record.target.digest or "@" in name):
            return _Held(record, named=False, accepted="@" not in name, announces=None)
        accepted = self._accept(name)
        reference = Reference.parse_full(name) if accepted else None
        announces = str(reference) if reference is not None and reference.digest is None else None
        return _Held(record, named=True, accepted=accepted, announces=announces)

    def _announcing(self, name: str) -> _Held | None:
        """Return the image that ``name`` is announced for, or None if it is not whole."""
        record = self.record_of(name)
        if record is None:
            return None
        held = self._images[record]
        return held if self._is_whole(held.record.target.digest) else None

    def _touch(self, digest: Digest, *, walk: bool) -> None:
        self._unsettled.add(digest)
        if walk:
            self._unwalked.update(self._holders.get(digest, ()))

    def _hold(self, name: str, before: dict[Digest, str], after: dict[Digest, str]) -> None:
        for digest in before.keys() - after.keys():
            holders = tuple(holder for holder in self._holders.pop(digest) if holder != name)
            if holders:
                self._holders[digest] = holders
        for digest in after.keys() - before.keys():
            self._holders[digest] = (*self._holders.get(digest, ()), name)
        self._unsettled.update(digest for digest, _ in before.items() ^ after.items())

    def _walk_changed(self) -> None:
        for name in self._unwalked:
            held = self._images.get(name)
            if held is None:
                continue
            reach, unread = self._walk(held.record.target, root_is_manifest=held.named)
            self._hold(name, held.reach, reach)
            held.reach = reach
            self._unread.pop(name, None)
            if unread:
                self._unread[name] = unread
            if held.announces is not None:
                self._unsettled_names.add(held.announces)
        self._unwalked.clear()

    def _walk(self, root: Descriptor, *, root_is_manifest: bool) -> tuple[dict[Digest, str], set[Digest]]:
        """Return the digests that ``root`` reaches, with media types, and the unread manifests among them."""
        reach: dict[Digest, str] = {}
        unread: set[Digest] = set()
        todo = [(root, 0)]
        while todo:
            descriptor, depth = todo.pop()
            digest = descriptor.digest
            if digest in reach:
                continue
            reach[digest] = descriptor.media_type
            content = self._content.get(digest)
            if content is None or content.size > MAX_MANIFEST_SIZE or depth > MAX_DEPTH:
                continue
            if not is_manifest_type(descriptor.media_type) and not (root_is_manifest and depth == 0):
                continue
            if digest not in self._documents:
                unread.add(digest)
            elif (document := self._documents[digest]) is not None:
                todo.extend((child, depth + 1) for child in (*document.needed, *document.extras))
        return reach, unread

    def _is_whole(self, root: Digest) -> bool:
        """Whether all needed content of a manifest, or of one platform of an index, is present."""
        known: dict[Digest, bool] = {}

        def whole(digest: Digest, depth: int) -> bool:
            if digest not in known:
                document = self._documents.get(digest)
                if document is None or depth > MAX_DEPTH:
                    known[digest] = False
                elif document.is_index:
                    known[digest] = any(whole(child.digest, depth + 1) for child in document.needed)
                else:
                    known[digest] = all(child.digest in self._content for child in document.needed)
            return known[digest]

        return whole(root, 0)

    def _source_accepted(self, content: Content) -> bool:
        return any(self._accept(f"{source}@{content.digest}") for source in content.sources)

    def _descriptor(self, digest: Digest) -> Descriptor | None:
        """Return the descriptor that content is served with, or None if it is not served."""
        content = self._content.get(digest)
        if content is None:
            return None
        holders = [self._images[name] for name in self._holders.get(digest, ())]
        # named images decide first, because a record that is a bare digest is always accepted
        named = [held for held in holders if held.named]
        if not (any(held.accepted for held in named or holders) or (not named and self._source_accepted(content))):
            return None
        document = self._documents.get(digest)
        if document is not None and document.declared:
            return Descriptor(digest, content.size, document.media_type)
        # images may name the same blob by an OCI and by a Docker type; sorting makes the choice stable
        types = sorted(held.reach[digest] for held in holders)
        if document is not None:
            family = INDEXES if document.is_index else MANIFESTS
            fitting = [media_type for media_type in types if media_type in family]
            return Descriptor(digest, content.size, fitting[0] if fitting else document.media_type)
        return Descriptor(digest, content.size, types[0] if types else OCTET_STREAM)
