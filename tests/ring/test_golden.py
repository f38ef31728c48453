# What Go writes, byte for byte: made with go-libp2p-kad-dht v0.42.2 (pb, protoio), go-libp2p-kbucket v0.9.0 and
# Spegel's createCid, for two peers with the Ed25519 seeds 01 01 ... and 02 02 ...

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spegel_consul.multiaddrs import parse
from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.messages import Frames, Message, MessageType, WirePeer, decode, encode
from spegel_consul.ring.net import node_key

KEY = "sha256:abababababababababababababababababababababababababababababababab"
KEY_HEX = "12207b28e61bc1d292234192478f2c9d3b56c10ca6a386801f8d2975ea6235e674cd"
ID_1 = "0024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
ID_2 = "002408011220" + "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
ROUTER_1, REGISTRY_1 = "040a000001061389", "040a000001061388e003"
ROUTER_2 = "29fd000000000000000000000000000002061389"
PEER_1 = f"0a26{ID_1}1208{ROUTER_1}120a{REGISTRY_1}"
PEER_2 = f"0a26{ID_2}1214{ROUTER_2}"

ONE = WirePeer(bytes.fromhex(ID_1), (bytes.fromhex(ROUTER_1), bytes.fromhex(REGISTRY_1)))
TWO = WirePeer(bytes.fromhex(ID_2), (bytes.fromhex(ROUTER_2),))
RAW = bytes.fromhex(KEY_HEX)


def peer(number: int) -> bytes:
    return node_key.peer_id(Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)))


def test_keys_ids_and_their_positions_are_those_of_go() -> None:
    assert dht_key(KEY).hex() == KEY_HEX
    assert f"{position(RAW):064x}" == "5516e09ca10394d42ba1fad81188346241851b99eba39c68433a6b56a81d3d0a"
    assert (peer(1).hex(), peer(2).hex()) == (ID_1, ID_2)
    assert peer_id_to_text(peer(1)) == "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    assert f"{position(peer(1)):064x}" == "2ea99e04b7226ebb09856fdd2c3df7aad5dbc53dbcbb110d5e1ff64b7626122e"


def test_addresses_are_those_of_go() -> None:
    for text, raw in (
        ("/ip4/10.0.0.1/tcp/5001", ROUTER_1),
        ("/ip4/10.0.0.1/tcp/5000/http", REGISTRY_1),
        ("/ip6/fd00::2/tcp/5001", ROUTER_2),
    ):
        address = parse(text)
        assert address is not None
        assert address.encode().hex() == raw


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (
            Message(MessageType.ADD_PROVIDER, RAW, (), (ONE,)),
            f"680802 1222{KEY_HEX} 4a3e{PEER_1} 5001",
        ),
        (Message(MessageType.GET_PROVIDERS, RAW), f"280803 1222{KEY_HEX} 5001"),
        (Message(MessageType.GET_PROVIDERS, RAW, brief=True), f"2b0803 1222{KEY_HEX} 5001 a00601"),
        (Message(MessageType.GET_PROVIDERS, RAW, vacant=True), f"2b0803 1222{KEY_HEX} 5001 a80601"),
        (Message(MessageType.FIND_NODE, ONE.id), f"2c0804 1226{ID_1} 5001"),
        (Message(MessageType.PING), "040805 5001"),
        (
            Message(MessageType.GET_PROVIDERS, RAW, (TWO, ONE), (ONE,)),
            f"ee010803 1222{KEY_HEX} 4240{PEER_2}1801 4240{PEER_1}1801 4a40{PEER_1}1801 5001",
        ),
        (Message(MessageType.FIND_NODE, b"", (TWO,)), f"460804 4240{PEER_2}1801 5001"),
    ],
    ids=["add_provider", "get_providers", "brief", "vacant", "find_node", "ping", "providers", "nodes"],
)
def test_messages_are_those_of_go(message: Message, golden: str) -> None:
    data = bytes.fromhex(golden)
    assert encode(message) == data
    assert [decode(body) for body in Frames().feed(data)] == [message]
