# The core of every store: what is there goes in, what may be served comes out.  No I/O, no clock, no locks.
#
# In go image records (name -> descriptor of the root), content records (digest, size, where it was pulled from)
# and parsed manifests.  From these follow, for each digest, whether it is served and as what media type, and for
# each name, whether it is announced.  The rules:
#
#   * A name is announced if it is full and tagged, is accepted, and its image is whole: all of a manifest, or of
#     one platform of an index.  containerd also keeps names with a digest; those only hold content.
#   * A name is announced with the one name of its registry, since that is what it is asked for by.  If several records
#     have names that are the same then, the one that is written so counts, else the first by name.
#   * Content that an image holds is served if one of its images is accepted.  Content of images that are only
#     refused is not served, however it got its labels.
#   * Content that no named image holds is served if it is held by a record whose name is a bare digest (put
#     there on purpose, without a name that could be judged), or if a repository it was pulled from is accepted:
#     a pull under way is then a source for others before it has ended.  Other loose content is not served:
#     nothing says which registry it belongs to (build caches, leftovers).
#   * The media type of a manifest is the one that stands in it (its digest vouches for that, and clients compare);
#     else the one in the descriptor that names it, if that fits its shape; else a guess from its shape.
#
# Manifests are content, so the index can't follow an image before it has their bytes.  unread() says which it
# needs, learn() takes them, and settle() tells what has changed.  Only what a change touches is worked out
# again: images remember what they reach, digests remember which images hold them.

"""The index in memory behind every store: which digests and names the node can serve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import INDEXES, MANIFESTS, MAX_MANIFEST_SIZE, OCTET_STREAM
from spegel_consul.oci.reference import Reference
from spegel_consul.store import Changed, Image
from spegel_consul.store.manifest_walk import Document, is_manifest_type

MAX_DEPTH = 8
"""How deep indexes may be nested; real ones are one or two deep."""


def everything(name: str) -> bool:
    """The filter that accepts each image name."""
    return True


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as the runtime knows it: any name, and the descriptor of its manifest or index."""

    name: str
    target: Descriptor


@dataclass(frozen=True, slots=True)
class Content:
    """Content that is there, whole. ``sources``: repositories it was pulled from, such as ``docker.io/library/app``."""

    digest: Digest
    size: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a runtime has at one time."""

    images: tuple[ImageRecord, ...] = ()
    contents: tuple[Content, ...] = ()


@dataclass(slots=True)
class _Held:
    """An image record and what follows from it.

    ``named``: it can hold content for or against the filter; ``announces``: the name that it is announced by, if any.
    """

    record: ImageRecord
    named: bool
    accepted: bool
    announces: str | None
    reach: dict[Digest, str] = field(default_factory=dict)


class Index:
    """What may be served.

    ``accept`` is asked with full names, ``registry/repository:tag`` or ``…@digest``, and with whatever other names
    the runtime has images under.
    """

    def __init__(self, accept: Callable[[str], bool] = everything) -> None:
        self._accept = accept
        self._images: dict[str, _Held] = {}
        self._content: dict[Digest, Content] = {}
        self._documents: dict[Digest, Document | None] = {}
        self._holders: defaultdict[Digest, set[str]] = defaultdict(set)
        self._served: dict[Digest, Descriptor] = {}
        self._names: dict[str, Digest] = {}
        self._records: defaultdict[str, set[str]] = defaultdict(set)
        """Names of records, by what they would be announced by."""
        self._unwalked: set[str] = set()
        self._unsettled: set[Digest] = set()
        self._unsettled_names: set[str] = set()
        self._unread: dict[str, set[Digest]] = {}
        self.version = 0

    # What may be served, as of the last settle()

    def resolve(self, name: str) -> Digest | None:
        return self._names.get(name)

    def describe(self, digest: Digest) -> Descriptor | None:
        return self._served.get(digest)

    def images(self) -> tuple[Image, ...]:
        return tuple(Image(name, digest) for name, digest in sorted(self._names.items()))

    def keys(self) -> frozenset[str]:
        return frozenset(self._served).union(self._names)

    # What is there

    def reached(self, record_name: str) -> frozenset[Digest]:
        """What the image of a record is made of, there or not, as far as its manifests are known."""
        self._walk_changed()
        held = self._images.get(record_name)
        return frozenset(held.reach) if held else frozenset()

    def parts(self, name: str) -> frozenset[Digest]:
        """What the announced image ``name`` is made of, there or not."""
        self._walk_changed()
        held = self._announcing(name)
        return frozenset(held.reach) if held else frozenset()

    def holders(self, digest: Digest) -> tuple[str, ...]:
        """Names of the images that hold the content, sorted."""
        return tuple(sorted(self._holders.get(digest, ())))

    def digests(self) -> frozenset[Digest]:
        """Content that may be served."""
        return frozenset(self._served)

    def origins(self, digest: Digest) -> tuple[str, ...]:
        """Names that say where the content belongs: its images', or the repositories it was pulled from."""
        names = tuple(name for name in self._holders.get(digest, ()) if "/" in name)
        content = self._content.get(digest)
        return names or (content.sources if content is not None else ())

    def is_stray(self, digest: Digest) -> bool:
        """Whether the content is there but nothing says yet where it belongs."""
        content = self._content.get(digest)
        return content is not None and not content.sources and not self._holders.get(digest)

    def put_image(self, record: ImageRecord) -> None:
        """There is such an image, or it points elsewhere now."""
        held = self._images.get(record.name)
        if held is not None and held.record == record:
            return
        if held is None:
            held = self._judge(record)
            self._images[record.name] = held
            if held.announces is not None:
                self._records[held.announces].add(record.name)
        else:
            held.record = record
        self._unwalked.add(record.name)

    def drop_image(self, name: str) -> None:
        """There is no such image (any more)."""
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
        """There is such content, whole."""
        known = self._content.get(content.digest)
        if known == content:
            return
        self._content[content.digest] = content
        self._touch(content.digest, walk=known is None or known.size != content.size)

    def drop_content(self, digest: Digest) -> None:
        """There is no such content (any more)."""
        if self._content.pop(digest, None) is None:
            return
        self._documents.pop(digest, None)
        self._touch(digest, walk=True)

    def apply(self, snapshot: Snapshot) -> None:
        """Become what ``snapshot`` says: what it does not list is gone."""
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
        """Content that must be read and parsed before the index is right; answer each with learn() or drop_content().

        Read one batch, and ask again: an index has to be read before its manifests are known.
        """
        self._walk_changed()
        digests = set().union(*self._unread.values()) if self._unread else set()
        for digest in self._unsettled:
            content = self._content.get(digest)
            if (
                content is not None
                and content.size <= MAX_MANIFEST_SIZE
                and digest not in self._documents
                and not self._holders.get(digest)
                and self._source_accepted(content)
            ):
                digests.add(digest)
        return tuple(self._content[digest] for digest in digests)

    def learn(self, digest: Digest, document: Document | None) -> None:
        """What was found in content that unread() asked for; None if it is no manifest."""
        if digest in self._content:
            self._documents[digest] = document
            self._touch(digest, walk=True)

    def settle(self) -> Changed:
        """Work out what may be served now; what that adds and removes since the last time."""
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

    def _judge(self, record: ImageRecord) -> _Held:
        name = record.name
        if name == record.target.digest:
            return _Held(record, named=False, accepted=True, announces=None)
        accepted = self._accept(name)
        reference = Reference.parse_full(name) if accepted else None
        announces = str(reference) if reference is not None and reference.digest is None else None
        return _Held(record, named=True, accepted=accepted, announces=announces)

    def _announcing(self, name: str) -> _Held | None:
        """The image that ``name`` is announced for, or None if it is not whole."""
        records = self._records.get(name)
        if not records:
            return None
        held = self._images[min(records, key=lambda each: (each != name, each))]
        return held if self._is_whole(held.record.target.digest) else None

    def _touch(self, digest: Digest, *, walk: bool) -> None:
        self._unsettled.add(digest)
        if walk:
            self._unwalked |= self._holders.get(digest, set())

    def _hold(self, name: str, before: dict[Digest, str], after: dict[Digest, str]) -> None:
        for digest in before.keys() - after.keys():
            holders = self._holders[digest]
            holders.discard(name)
            if not holders:
                del self._holders[digest]
        for digest in after.keys() - before.keys():
            self._holders[digest].add(name)
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
        """What is reachable from ``root``, with media types, and which manifests on the way are unread."""
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
        """Whether all that is needed below a manifest or index is there."""
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
        """The descriptor that content is served with, or None if it is not served."""
        content = self._content.get(digest)
        if content is None:
            return None
        holders = [self._images[name] for name in self._holders.get(digest, ())]
        # named images are the ones to judge; a record that is a bare digest is always accepted
        judges = [held for held in holders if held.named] or holders
        if not (any(held.accepted for held in judges) if judges else self._source_accepted(content)):
            return None
        document = self._documents.get(digest)
        if document is not None and document.declared:
            return Descriptor(digest, content.size, document.media_type)
        # several images may call the same blob by an OCI and by a Docker type: any is right, but always the same
        types = sorted(held.reach[digest] for held in holders)
        if document is not None:
            family = INDEXES if document.is_index else MANIFESTS
            fitting = [media_type for media_type in types if media_type in family]
            return Descriptor(digest, content.size, fitting[0] if fitting else document.media_type)
        return Descriptor(digest, content.size, types[0] if types else OCTET_STREAM)
