"""Conversion of containerd's messages to records of the index and to events.

Each message becomes plain frozen objects in the thread that received it.  An invalid digest or an unknown topic is left
out with a line in the log, so that one bad record never stops the others.  A new message of containerd that the store
reads is converted here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import structlog
from google.protobuf.message import DecodeError

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid
from spegel_consul.oci.media import header_safe
from spegel_consul.oci.reference import registry_name
from spegel_consul.store.containerd.proto import containerd_pb2 as pb
from spegel_consul.store.index import Content, ImageRecord

log = structlog.get_logger(__name__)

SOURCE_LABEL = "containerd.io/distribution.source."
"""Prefix of the label that a pull leaves on content; the registry follows, repositories are the value."""


@dataclass(frozen=True, slots=True)
class ImageChanged:
    """An image was made or points to something else now."""

    name: str


@dataclass(frozen=True, slots=True)
class ImageDeleted:
    """An image's name is gone; its content goes when containerd collects garbage."""

    name: str


@dataclass(frozen=True, slots=True)
class ContentChanged:
    """Content was committed (from 2.1 on) or deleted."""

    digest: Digest


Event = ImageChanged | ImageDeleted | ContentChanged


def image_record(image: pb.Image) -> ImageRecord | None:
    """The image, or None if its digest is not one that we can serve.

    CRI keeps a record ``sha256:<digest of the config>`` for each image beside those with names.  It says nothing
    about registries, and what it holds the others hold too, so it is None as well.
    """
    if Digest.begins(image.name):
        return None
    target = image.target
    try:
        digest = Digest(target.digest)
    except DigestInvalid as exc:
        log.warning("image ignored", image=image.name, reason=str(exc))
        return None
    updated_at = image.updated_at.seconds + image.updated_at.nanos / 1e9 if image.HasField("updated_at") else None
    labels = tuple(sorted(image.labels.items()))
    return ImageRecord(
        image.name, Descriptor(digest, target.size, sys.intern(header_safe(target.media_type))), updated_at, labels
    )


def content(info: pb.Info) -> Content | None:
    """The content, or None if its digest is not one that we can serve."""
    try:
        digest = Digest(info.digest)
    except DigestInvalid as exc:
        log.debug("content ignored", digest=info.digest, reason=str(exc))
        return None
    return Content(digest, info.size, sources(info.labels))


def sources(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Repositories that content was pulled from: ``docker.io/library/app``, sorted.

    The value of a label is a list with commas (containerd core/remotes/docker/handler.go).
    """
    return tuple(
        sorted(
            sys.intern(f"{registry_name(registry)}/{repository}")
            for label, repositories in labels.items()
            if label.startswith(SOURCE_LABEL) and (registry := label.removeprefix(SOURCE_LABEL))
            for repository in repositories.split(",")
            if repository
        )
    )


def event(envelope: pb.Envelope, namespace: str) -> Event | None:
    """The event in an envelope, or None if it is of no interest or can't be understood."""
    if envelope.namespace != namespace:
        return None
    payload = envelope.event.value
    try:
        match envelope.topic:
            case "/images/create" | "/images/update":
                return ImageChanged(pb.ImageEvent.FromString(payload).name)
            case "/images/delete":
                return ImageDeleted(pb.ImageEvent.FromString(payload).name)
            case "/content/create" | "/content/delete":
                return ContentChanged(Digest(pb.ContentEvent.FromString(payload).digest))
    except (DecodeError, DigestInvalid) as exc:
        log.warning("containerd event ignored", topic=envelope.topic, reason=str(exc))
    return None
