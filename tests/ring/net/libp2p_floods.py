"""What floods of a peer are made of."""

from __future__ import annotations

from spegel_consul.ring.dht.messages import Message, MessageType, encode

WITHIN = 60.0
"""Seconds after which something hangs."""

PING = encode(Message(MessageType.PING))
