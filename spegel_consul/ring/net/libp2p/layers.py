"""The upgrade of a socket to a connection: keys, Noise, Yamux, and the identify message."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import PrivateKey
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.upgrader import TransportUpgrader

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError
from spegel_consul.ring.net import node_key
from spegel_consul.ring.net.host import Identity
from spegel_consul.ring.net.libp2p.muxer import BoundedYamux
from spegel_consul.ring.net.libp2p.noise_transport import Session, Wire


@cache
def _noise_key() -> PrivateKey:
    """The static key of Noise, one for all hosts of this process, also for those that replace each other.

    A process that has the same identity has another one, which its identity has signed.
    """
    return create_noise_key_pair().private_key


class Layers:
    """The state that all connections of a node share: its keys, and the protocols below streams."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._keys = create_new_key_pair(node_key.seed(key))
        self._noise_key = _noise_key()
        self._noise = Noise(self._keys, noise_privkey=self._noise_key)
        self._upgrader = TransportUpgrader({NOISE: self._noise}, {TProtocol(YAMUX): BoundedYamux})

    async def secure(self, wire: Wire, *, outbound: bool) -> Any:
        """Negotiate Noise. The result goes to :meth:`peer_of` and :meth:`multiplex`. Raises anything."""
        raw = RawConnection(wire, outbound)
        if outbound:
            await self._upgrader.security_multistream.select_transport(raw, True)
            # None: Noise authenticates any peer id, and the host compares it with the expected one
            return await self._noise.get_pattern().handshake_outbound(raw, None)
        return await self._upgrader.upgrade_security(raw, False)

    @staticmethod
    def peer_of(secured: Any) -> bytes:
        """The authenticated binary id of the peer."""
        return bytes(secured.get_remote_peer().to_bytes())

    def is_this_process(self, secured: Any) -> bool:
        """Whether the other end of the connection is in this process, if it has this node's identity."""
        return bool(secured.remote_permanent_pubkey == self._noise_key.get_public_key())

    async def multiplex(self, secured: Any, wire: Wire) -> BoundedYamux:
        """Negotiate Yamux. The result goes to :class:`Connection`. Raises anything."""
        # not new_conn(), because it uses its own Yamux whichever class was configured
        muxer: Any = await self._upgrader.muxer_multistream.select_transport(secured)
        yamux: BoundedYamux = muxer(
            Session(secured, wire), secured.get_remote_peer(), is_initiator=secured.is_initiator
        )
        return yamux

    def describe(self, addresses: Iterable[Address], protocols: Iterable[str]) -> bytes:
        """This node's identify message."""
        message = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version="spegel-consul",
            public_key=self._keys.public_key.serialize(),
            listen_addrs=[address.encode() for address in addresses],
            protocols=list(protocols),
        )
        return bytes(message.SerializeToString())


def read_description(body: bytes) -> Identity:
    """Decode a peer's identify message. Raises RingError if it is malformed."""
    try:
        message = Identify.FromString(body)
    except DecodeError as exc:
        raise RingError(f"the peer's identify message is malformed: {exc}") from None
    return Identity(frozenset(message.protocols), tuple(message.listen_addrs))
