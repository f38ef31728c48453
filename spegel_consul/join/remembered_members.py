"""``Remembered``: the last known members of the ring, kept over restarts.

They are in a file beside the identity.  If Consul is unavailable when this node starts, it joins through them.  Nothing
depends on the file: if it is missing, damaged or can't be written, that way to join is lost, and one line is logged.

A new rule about the members that are kept belongs here.  The time at which they are used belongs to ``keeper``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

PEERS_FILE = "peers.json"
MAX_PEERS = 256
"""Largest number of members in the file; any few of them are enough to join."""

_MAX_BYTES = 1 << 20
_WITHIN = 1.0  # seconds for a call to the disk


class Remembered:
    """The members in a file in ``data_dir``; None for a node that keeps no data."""

    def __init__(self, data_dir: Path | None) -> None:
        self._path = data_dir / PEERS_FILE if data_dir is not None else None
        self._calls = foreign_files.FileCalls(_WITHIN)
        self._written: frozenset[PeerInfo] = frozenset()
        self._logged = False
        self.peers: tuple[PeerInfo, ...] = ()
        """The members of the last run."""

    async def load(self) -> None:
        """Read :attr:`peers` from the file; takes at most a second."""
        if self._path is not None:
            try:
                self.peers = await self._calls.run(partial(self._load, self._path))
            except OSError as exc:
                self._log_once(f"cannot read {self._path}: {in_words(exc)}")

    async def save(self, members: Sequence[PeerInfo]) -> None:
        """Write ``members``. An empty list is not written, because the file serves nodes that have lost all members."""
        if self._differs(members):
            try:
                await self._calls.run(partial(self._save, members))
            except OSError as exc:
                self._log_once(f"cannot write {self._path}: {in_words(exc)}")
            else:
                self._written = frozenset(members)

    async def save_last(self, members: Sequence[PeerInfo]) -> None:
        """Write ``members`` when the node stops, although its tasks are cancelled."""
        with trio.move_on_after(_WITHIN, shield=True):
            await self.save(members)

    def _save(self, members: Sequence[PeerInfo]) -> None:
        if self._path is None:
            return
        chosen = random.sample(members, min(MAX_PEERS, len(members)))
        text = json.dumps({"members": [{"id": peer.id, "addrs": list(peer.addrs)} for peer in chosen]})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        foreign_files.write(self._path, text.encode())

    def _differs(self, members: Sequence[PeerInfo]) -> bool:
        return self._path is not None and bool(members) and frozenset(members) != self._written

    def _load(self, path: Path) -> tuple[PeerInfo, ...]:
        try:
            members = json.loads(foreign_files.read(path, _MAX_BYTES, follow=False))["members"]
            return tuple(PeerInfo(str(each["id"]), tuple(map(str, each["addrs"]))) for each in members[:MAX_PEERS])
        except FileNotFoundError:
            return ()
        except (ValueError, TypeError, KeyError, RecursionError):
            self._log_once(f"{path} is damaged and will be replaced")
        return ()

    def _log_once(self, problem: str) -> None:
        if not self._logged:
            self._logged = True
            log.warning("members_not_remembered", problem=problem)
