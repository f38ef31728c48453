# The one package that knows py-libp2p (PyPI libp2p; much of what is called here is not its public API, so the
# version is pinned): nothing outside of this directory imports it.
#
# It takes from the package what is the protocol: keys, multistream-select, Noise, Yamux, the identify
# message.  It leaves out Swarm and BasicHost, which own connections, dialling and listening there, because
# in 0.8.1 these are where a node can be stopped or deafened from outside; libp2p_host.py has their part:
#
#   * an exception in one inbound stream (five bytes that are not UTF-8 do) stops the Swarm.  Here each
#     connection and each stream is a task that ends alone, and logs at debug;
#   * an inbound connection keeps its slot until the process ends.  Here it ends with its task;
#   * dialling waits 250 ms for no one, blacklists, dials twice, needs the peer's id, and closes under a
#     shield without end.  Here a dial is a task of the host with one deadline; whoever waits for it may go
#     away;
#   * a resource manager refuses the 257th connection, half-open ones block the others, plaintext is
#     accepted, wildcard addresses are advertised, IPv6 remotes are unknown.  Here are own limits, Noise and
#     Yamux only, and the address that the operator named.
#
# Its Yamux is used, but not trusted with memory (0.8.1 again): it grants up to 16 MiB per stream, notes with a
# warning that a peer sends more than it was granted and keeps it all, and keeps a stream that was reset for a
# minute and more if data waits on it.  Here the grant is smaller, a peer that exceeds it loses the connection,
# what waits on a stream that was reset is dropped, and a stream counts until both sides have ended it.
#
# What remains lies deeper: a task cancelled while Noise writes has used up a nonce for bytes that never
# left, which kills the connection, and a write to a closed socket succeeds silently.  Both end in Wire,
# which is the socket as the layers above see it: a write is queued whole without waiting, or raises; a task
# of the connection sends it.
#
#     layers       keys, and what makes a connection of a socket: multistream-select, Noise, Yamux, identify
#     wire         the socket as the layers see it
#     muxer        Yamux, bounded
#     stream       one stream of a connection
#     connection   a connection and its tasks
#
# libp2p's __init__ imports all that it has - QUIC, relays, pubsub, DNS, a DHT - which is 17 MiB and a quarter of a
# second of things that are never called here.  A package that is in sys.modules already is not initialised again, so
# an empty one with the right path is put there first, and its modules are then imported one by one.

"""Connections and streams as libp2p makes them: Noise, Yamux, multistream-select, identify."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types

# py-libp2p logs several lines, some with tracebacks, for whatever a peer does; this adapter says what matters
logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)

for _name in ("libp2p", "libp2p.transport"):
    _spec = importlib.util.find_spec(_name)
    if _name not in sys.modules and _spec is not None and _spec.submodule_search_locations:
        _package = types.ModuleType(_name)
        _package.__path__ = list(_spec.submodule_search_locations)
        _package.__spec__ = _spec
        sys.modules[_name] = _package
