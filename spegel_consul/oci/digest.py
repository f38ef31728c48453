"""Content digests of the OCI image specification.

A digest is a string everywhere: on the wire, as a dictionary key, as the key of the ring.  So :class:`Digest` is a
subclass of str whose constructor checks the text, and no holder of a Digest checks it again.  A new algorithm belongs
here.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from spegel_consul.oci.errors import DigestInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


class Digest(str):
    """``algorithm:hex``, checked (image-spec descriptor.md, "Digests"; algorithms as in go-digest).

    Raises :class:`DigestInvalid` for an unknown algorithm, a wrong length, or upper-case hex.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        algorithm, colon, encoded = text.partition(":")
        if not colon:
            raise DigestInvalid(f"digest {text[:100]!r} has no algorithm: expected sha256:<64 hex digits>")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            known = ", ".join(_HEX_LENGTH)
            raise DigestInvalid(f"digest algorithm {algorithm[:100]!r} is not supported: use one of {known}")
        if len(encoded) != length or not _HEX.match(encoded):
            raise DigestInvalid(f"{algorithm} digest must be {length} lower-case hex digits")
        return super().__new__(cls, text)

    @staticmethod
    def begins(text: str) -> bool:
        """Whether ``text`` is meant as a digest, valid or not, because it begins with the name of an algorithm."""
        return text.partition(":")[0] in _HEX_LENGTH and ":" in text and "/" not in text

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    def fits(self, data: bytes) -> bool:
        """Whether this is the digest of ``data``."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.encoded

    @property
    def algorithm(self) -> str:
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        return self.partition(":")[2]

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm; compare its hexdigest with :attr:`encoded`."""
        return hashlib.new(self.algorithm)
