# The members of the last run, in a file beside the identity: when Consul is away and this node starts, they are
# a way back into the ring.  Nothing depends on the file: one that is missing, damaged or can't be written costs
# that way in, and one line in the log.

"""The last known members of the ring, kept over restarts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.disk.threads import in_thread
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

PEERS_FILE = "peers.json"
MAX_PEERS = 256
"""How many members are kept; any few of them are enough."""

_MAX_BYTES = 1 << 20
_WITHIN = 1.0  # seconds that the disk may take


class Remembered:
    """Members in ``data_dir``; None for a node that keeps nothing."""

    def __init__(self, data_dir: Path | None) -> None:
        self._path = data_dir / PEERS_FILE if data_dir is not None else None
        self._written: frozenset[PeerInfo] = frozenset()
        self._told = False
        self.peers: tuple[PeerInfo, ...] = ()
        """The members of the last run."""

    async def load(self) -> None:
        """Read :attr:`peers`."""
        if self._path is not None:
            with trio.move_on_after(_WITHIN) as limit:
                self.peers = await in_thread(partial(self._load, self._path))
            if limit.cancelled_caught:
                self._complain(f"{self._path} can't be read: the disk does not answer")

    async def save(self, members: Sequence[PeerInfo]) -> None:
        """Keep ``members``, unless there are none: to have lost all of them is the case that this is for."""
        if self._is_news(members):
            with trio.move_on_after(_WITHIN) as limit:
                await in_thread(partial(self._save, members))
            if limit.cancelled_caught:
                self._complain(f"cannot write {self._path}: the disk does not answer")

    async def save_last(self, members: Sequence[PeerInfo]) -> None:
        """The same, when the node stops and nothing else may wait any more."""
        with trio.move_on_after(_WITHIN, shield=True):
            await self.save(members)

    def _save(self, members: Sequence[PeerInfo]) -> None:
        if self._path is None:
            return
        chosen = random.sample(members, min(MAX_PEERS, len(members)))
        text = json.dumps({"members": [{"id": peer.id, "addrs": list(peer.addrs)} for peer in chosen]})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            foreign_files.write(self._path, text.encode())
        except OSError as exc:
            self._complain(f"cannot write {self._path}: {exc.strerror or exc}")
        else:
            self._written = frozenset(members)

    def _is_news(self, members: Sequence[PeerInfo]) -> bool:
        return self._path is not None and bool(members) and frozenset(members) != self._written

    def _load(self, path: Path) -> tuple[PeerInfo, ...]:
        try:
            members = json.loads(foreign_files.read(path, _MAX_BYTES, follow=False))["members"]
            return tuple(PeerInfo(str(each["id"]), tuple(map(str, each["addrs"]))) for each in members[:MAX_PEERS])
        except FileNotFoundError:
            return ()
        except OSError as exc:
            self._complain(f"cannot read {path}: {exc.strerror or exc}")
        except (ValueError, TypeError, KeyError, RecursionError):
            self._complain(f"{path} is damaged; it is written anew")
        return ()

    def _complain(self, problem: str) -> None:
        if not self._told:
            self._told = True
            log.warning("members_not_remembered", problem=problem)
