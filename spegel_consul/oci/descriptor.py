"""Descriptors of the OCI image specification, reduced to what a mirror needs."""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One piece of content: its digest, size in bytes and media type (image-spec descriptor.md)."""

    digest: Digest
    size: int
    media_type: str
