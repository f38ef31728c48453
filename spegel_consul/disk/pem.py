"""Certificates and keys from files into TLS contexts.

OpenSSL opens files itself, so it would wait for a FIFO for ever, and it asks for the pass phrase of a key on the
terminal. So ``foreign_files.read`` reads the files, and OpenSSL gets a file in memory with these bytes. That needs
/proc.

A new rule about PEM files in general belongs here; the choice of the files belongs to the users of this module.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.lean.dataclass import dataclass

SIZE = 8 << 20
"""Size limit of a file, in bytes; all authorities of a Linux distribution take 250 kB."""


@contextmanager
def loaded(path: str | Path) -> Iterator[str]:
    """The path of a copy in memory of the file at ``path``. Raises OSError."""
    with _in_memory(foreign_files.read(path, SIZE)) as copy:
        yield copy


def client_context(authorities: str | Path | None) -> ssl.SSLContext:
    """A context that trusts the certificates in the file ``authorities``, or the system's. Raises OSError."""
    if authorities is None:
        return as_go_verifies(ssl.create_default_context())
    with loaded(authorities) as copy:
        return as_go_verifies(ssl.create_default_context(cafile=copy))


def as_go_verifies(context: ssl.SSLContext) -> ssl.SSLContext:
    """``context`` without the strict mode of Python 3.13 and later.

    That mode refuses chains without an Authority Key Identifier, as private authorities often make them. Consul and the
    runtimes, which are written in Go, and Python before 3.13 accept such chains.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@dataclass(frozen=True, slots=True)
class Pair:
    """The contents of a certificate file, with its chain, and of the key file."""

    cert: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, cert: str | Path, key: str | Path) -> Pair:
        """Raises OSError."""
        return cls(foreign_files.read(cert, SIZE), foreign_files.read(key, SIZE))

    def load(self, context: ssl.SSLContext) -> None:
        """Load the pair into ``context``. Raises ssl.SSLError, and ValueError for a key with a pass phrase."""
        with _in_memory(self.cert) as cert, _in_memory(self.key) as key:
            context.load_cert_chain(cert, key, password=_no_pass_phrase)


def load_pair(context: ssl.SSLContext, cert: str | Path, key: str | Path) -> None:
    """Load the chain in ``cert`` and the key in ``key`` into ``context``.

    Raises OSError (ssl.SSLError is one) and ValueError for a key with a pass phrase.
    """
    Pair.read(cert, key).load(context)


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    fd = os.memfd_create("pem")
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _no_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase: give a key without one")
