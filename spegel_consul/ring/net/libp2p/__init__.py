"""Connections and streams as libp2p makes them: Noise, Yamux, multistream-select, identify.

This is the one package that knows py-libp2p; nothing outside of this directory imports it.  Its version (PyPI libp2p)
is pinned, because much of the code that is called here is not its public API.

From the library come the protocols: keys, multistream-select, Noise, Yamux, the identify message.  Swarm and BasicHost,
which own connections, dialling and listening there, are left out, because in 0.8.1 they let a remote peer stop or
deafen a node; ``libp2p_host`` has their part:

  * An exception in one inbound stream (five bytes that are not UTF-8 suffice) stops the Swarm.  Here each connection
    and each stream is a task that ends alone, and logs at debug.
  * An inbound connection keeps its slot until the process ends.  Here the slot ends with the task of the connection.
  * Dialling waits 250 ms without a reason, blacklists, dials twice, needs the peer's id, and closes under a shield
    without end.  Here a dial is a task of the host with one deadline, and its callers may stop waiting.
  * A resource manager refuses the 257th connection, half-open connections block the others, plaintext is accepted,
    wildcard addresses are advertised, IPv6 remotes are unknown.  Here the limits are our own, only Noise and Yamux are
    spoken, and the address of the configuration is advertised.

Its Yamux is used, but not trusted with memory (0.8.1 again).  It grants up to 16 MiB per stream; if a peer sends more
than it was granted, it logs a warning and keeps everything; it keeps a reset stream with unread data for more than a
minute.  Here the grant is smaller, a peer that exceeds it loses the connection, the unread data of a reset stream is
dropped, and a stream counts until both sides have ended it.

Two faults lie deeper.  A task that is cancelled while Noise writes has used up a nonce for bytes that never left, which
kills the connection; and a write to a closed socket succeeds silently.  ``Wire``, the socket as the layers above
see it, avoids both: a write is queued whole without waiting, or raises, and a task of the connection sends it.

And it is slow: a frame passes five locks and a dozen lines of a log that is off, and each few bytes that are read are
followed by a frame that grants them again.  So after the handshake ``Session`` encrypts in place of the library, plain
data frames pass ``BoundedYamux`` by a short way, and a window is granted again when half of it is used up.

    layers            keys, and the upgrade of a socket to a connection: multistream-select, Noise, Yamux, identify
    noise_transport   the socket as the layers see it, and the encrypted connection as Yamux sees it
    muxer             Yamux, bounded, with a short way for plain data
    stream            one stream of a connection
    peer_connection   a connection and its tasks

libp2p imports everything it has - QUIC, relays, pubsub, DNS, a DHT, RSA and secp256k1 - which costs 25 MiB and a third
of a second for code that is never called here. So its packages are imported without their ``__init__``, and
placeholders stand for names that only annotations and tables of the library use. Identities other than Ed25519 can't be
decoded then: such a peer's handshake fails, because ``node_key`` and the ring's records know only Ed25519.

A workaround for a fault of the library belongs here, with the version that has the fault.
"""

from __future__ import annotations

import logging

from spegel_consul.lean import imports as lean_imports

# py-libp2p logs lines and tracebacks for each fault of a peer; this adapter logs the relevant ones itself
logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)

lean_imports.without_init(
    "libp2p",
    "libp2p.transport",
    "libp2p.network",
    "libp2p.security",
    "libp2p.identity",
    "libp2p.identity.identify",
    "libp2p.transport.quic",
    "libp2p.tools.anyio_service",
)
lean_imports.placeholder("libp2p.transport.quic.stream", "QUICStream")
lean_imports.placeholder("libp2p.tools.anyio_service.api", "ServiceAPI")
lean_imports.placeholder("libp2p.crypto.rsa", "RSAPublicKey.from_bytes", "RSAPrivateKey.from_bytes")
lean_imports.placeholder("libp2p.crypto.secp256k1", "Secp256k1PublicKey.from_bytes", "Secp256k1PrivateKey.from_bytes")
lean_imports.placeholder("libp2p.utils.version", "get_agent_version")
# keys of the ring and peer ids are SHA-256 or the key itself
lean_imports.placeholder_for("multihash.funcs", "blake3", "blake3.update")
lean_imports.placeholder(
    "libp2p.utils.address_validation",
    "get_available_interfaces",
    "get_optimal_binding_address",
    "expand_wildcard_address",
    "find_free_port",
)
