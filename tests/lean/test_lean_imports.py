"""The parts of libraries that are left out: nothing else changes, and a use of them is an error that says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lab.process import HANG

from spegel_consul.ring.net.libp2p import layers  # noqa: F401 - declares what libp2p is imported without


def test_an_identity_of_another_kind_is_refused() -> None:
    from libp2p.crypto.keys import KeyType
    from libp2p.crypto.pb import crypto_pb2
    from libp2p.crypto.serialization import deserialize_public_key

    for kind in (KeyType.RSA, KeyType.Secp256k1):
        message = crypto_pb2.PublicKey(key_type=kind.value, data=b"key")
        with pytest.raises(TypeError, match="is left out of this program"):
            deserialize_public_key(message.SerializeToString())


PROGRAM = """
import sys
import spegel_consul
import structlog, httpx, httpcore, grpc
from consul.base import Consul
from hypercorn.trio.tcp_server import TCPServer
import prometheus_client

import spegel_consul.ring.net.libp2p.layers

left_out = {"asyncio", "rich", "anyio", "h2.events", "requests", "multiprocessing", "blake3", "http.server"}
assert not left_out & set(sys.modules), sorted(sys.modules)
assert structlog.dev.rich is None
import asyncio, rich, h2.events, blake3, multiprocessing.synchronize, http.server

assert callable(multiprocessing.synchronize.Event)
assert http.server.BaseHTTPRequestHandler.handle
assert len(blake3.blake3(b"").digest()) == 32

async def answer():
    return 3

assert asyncio.run(answer()) == 3
assert structlog.stdlib.asyncio.run is asyncio.run
assert structlog.stdlib.__loader__ is not None
"""


def test_what_a_library_is_executed_without_can_still_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hash_that_is_left_out_is_refused() -> None:
    import multihash

    with pytest.raises(TypeError):
        multihash.digest(b"", "blake3")
    assert multihash.digest(b"", "sha2-256").verify(b"")
