"""Suspects: peers that together sent a wrong body.

A body that one peer sent from its first byte to its last, and that has the wrong digest, proves that the peer is wrong.
A body that was assembled from several peers proves nothing about any of them, because each may have sent the right
bytes. So these peers are suspects, which changes the order and bars none: for this digest they are asked after all
others, and the next body is taken from one peer alone, which proves something.
A suspect is an address, under any peer id, for the reason that penalties.py gives.

A new rule about the conditions or the duration of suspicion belongs here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import Provider

DOUBT = 300.0
"""Seconds for which a digest stays in doubt, unless a right body comes first; as long as a wrong peer is barred."""

_MOST = 1024

Address = tuple[str, int]

_NONE: dict[Address, Provider | None] = {}


class Suspects:
    """Suspects by digest; the latest digests are remembered."""

    def __init__(self) -> None:
        self._suspects: BoundedDict[str, tuple[float, dict[Address, Provider | None]]] = BoundedDict(_MOST)

    def add(self, digest: Digest, suspects: Iterable[Provider], passed_on: Collection[Address] = ()) -> None:
        """Add the senders of a wrong body as suspects.

        A sender in ``passed_on`` could not verify the body, because it was still downloading it. So it is no suspect
        after others have sent a right one.
        """
        new = {each.registry: None if each.registry in passed_on else each for each in suspects}
        self._suspects[digest] = trio.current_time() + DOUBT, {**self.of(digest), **new}

    def of(self, digest: str | None) -> Mapping[Address, Provider | None]:
        """Return the suspects of ``digest`` by address; none if it is not in doubt."""
        if not self._suspects or digest is None:
            return _NONE
        until, suspects = self._suspects.get(digest, (0.0, _NONE))
        return suspects if until > trio.current_time() else _NONE

    def settle(self, digest: Digest, senders: Iterable[Provider]) -> list[Provider]:
        """Clear the suspects of a digest, because ``senders`` have sent it right, and return the others."""
        suspects, right = self.of(digest), {each.registry for each in senders}
        self._suspects.pop(digest, None)
        return [each for address, each in suspects.items() if each is not None and address not in right]
