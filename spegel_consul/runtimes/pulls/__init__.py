"""Pulls by this node's own runtimes, asked over their sockets: ``Runtime`` is one that can be asked.

A pull goes the way of each pull of that runtime: through its configuration of registries, so through the mirror if that
is set up. A runtime whose API would pass by the mirror is left out, and says so. A new runtime is a module here that
implements :class:`Runtime`, and its choice in ``node_runtimes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from spegel_consul.oci.reference import Reference

Received = Callable[[int], None]
"""Called with the bytes received so far, by runtimes that say so."""


class CantPull(Exception):
    """The runtime did not pull the image; the message is one line. ``missing``: no registry has the image.

    ``left_out``: this runtime can't be asked, or would pass by the mirror; it was not asked.
    """

    def __init__(self, message: str, *, missing: bool = False, left_out: bool = False) -> None:
        super().__init__(" ".join(message.split())[:500])
        self.missing = missing
        self.left_out = left_out


class Runtime(Protocol):
    """A runtime of this node, and the namespace of its images. ``name`` is for people."""

    @property
    def name(self) -> str: ...

    async def pull(self, reference: Reference, within: float, received: Received) -> None:
        """Return when the image is on the node. A cancelled pull is ended. Raises CantPull, also after ``within`` s."""
        ...


class Runtimes(Protocol):
    """The runtimes of a node."""

    async def choose(self, reference: Reference) -> Sequence[Runtime]:
        """The runtimes that have to pull ``reference``, at least one. Raises CantPull if they can't be found out."""
        ...
