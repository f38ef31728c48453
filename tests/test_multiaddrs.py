import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from spegel_consul.multiaddrs import Address, Contact, contact, decode, parse, split_peer_id

ips = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
addresses = st.builds(Address, ips, st.integers(1, 65535), st.booleans())


@given(addresses)
def test_bytes_and_text_are_what_the_multiaddr_package_makes(address: Address) -> None:
    if "%" in address.host:
        return
    theirs = Multiaddr(str(address))
    assert address.encode() == theirs.to_bytes()
    assert decode(address.encode()) == address
    assert parse(str(address)) == address


@given(st.binary(max_size=200))
def test_any_bytes_are_an_address_or_none(raw: bytes) -> None:
    address = decode(raw)
    assert address is None or raw.startswith(address.encode())


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_none(text: str) -> None:
    parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ip4/10.0.0.7/tcp/5001", Address("10.0.0.7", 5001)),
        ("/ip6/fd00::7/tcp/5001", Address("fd00::7", 5001)),
        ("/dns4/node-7.example/tcp/5001", Address("node-7.example", 5001)),
        ("/ip4/10.0.0.7/tcp/5000/http", Address("10.0.0.7", 5000, http=True)),
        ("/ip4/10.0.0.7/tcp/5001/p2p/12D3KooWA", Address("10.0.0.7", 5001)),
        ("/ip4/10.0.0.7/tcp/5001/p2p/12D3KooWA/p2p-circuit", None),
        ("/ip4/10.0.0.7/tcp/5001/p2p", None),
        ("/ip4/10.0.0.7/udp/5001/quic-v1", None),
        ("/ip4/10.0.0.7/tcp/5001/ws", None),
        ("/ip4/10.0.0.7/tcp/0", None),
        ("/ip4/10.0.0.7/tcp/65536", None),
        ("/ip4/10.0.0.7", None),
        ("/ip4/fd00::7/tcp/1", None),
        ("/ip4/10.0.0.256/tcp/1", None),
        ("/unix/tmp", None),
        ("", None),
    ],
)
def test_texts(text: str, expected: Address | None) -> None:
    assert parse(text) == expected


def test_the_peer_id_is_split_off() -> None:
    assert split_peer_id("/ip4/10.0.0.7/tcp/5001/p2p/12D3KooWA") == ("/ip4/10.0.0.7/tcp/5001", "12D3KooWA")
    assert split_peer_id("/ip4/10.0.0.7/tcp/5001/p2p/") == ("/ip4/10.0.0.7/tcp/5001", "")
    assert split_peer_id("/ip4/10.0.0.7/tcp/5001") == ("/ip4/10.0.0.7/tcp/5001", None)


def test_a_p2p_part_behind_an_address_is_ignored_and_others_are_not_ours() -> None:
    tcp = Address("10.0.0.7", 5001).encode()
    assert decode(tcp + b"\xa5\x03\x02\x00\x00") == Address("10.0.0.7", 5001)
    assert decode(tcp + b"\xdd\x03") is None  # /ws
    assert decode(Multiaddr("/ip4/10.0.0.7/udp/5001/quic-v1").to_bytes()) is None


def test_of_a_peers_addresses_only_those_that_can_be_dialled_are_kept() -> None:
    raw = tuple(
        Multiaddr(text).to_bytes()
        for text in (
            "/ip4/0.0.0.0/tcp/5001",
            "/ip4/127.0.0.1/tcp/5001",
            "/ip4/10.0.0.7/tcp/5001",
            "/ip4/10.0.0.7/tcp/5001",
            "/ip6/::1/tcp/5001",
            "/ip4/224.0.0.1/tcp/5001",
            "/ip4/127.0.0.1/tcp/5000/http",
            "/ip4/10.0.0.7/tcp/5000/http",
        )
    )
    router, registry = Address("10.0.0.7", 5001), Address("10.0.0.7", 5000, http=True)
    assert contact(b"peer", raw, loopback=False) == Contact(b"peer", (router,), registry)
    with_loopback = contact(b"peer", raw, loopback=True)
    assert with_loopback.routers == (Address("127.0.0.1", 5001), router, Address("::1", 5001))
    assert with_loopback.registry == Address("127.0.0.1", 5000, http=True)


@pytest.mark.parametrize(
    "name",
    ["a..b", ".", "-a", "a-", "x" * 64 + ".example", "a." * 127 + "b", "h\u00f6st_1", "\ud800", "a\0b", "a b", "a%b"],
)
def test_a_name_that_dns_cannot_have_is_no_address(name: str) -> None:
    assert parse(f"/dns/{name}/tcp/5001") is None


@pytest.mark.parametrize("name", ["node", "node-7.example.", "node_7", "xn--hst-sna.example", "x" * 63 + ".example"])
def test_a_name_that_dns_can_have_is_an_address(name: str) -> None:
    assert parse(f"/dns/{name}/tcp/5001") == Address(name, 5001)


@pytest.mark.parametrize(
    "host", ["::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.0.0.7", "::1", "224.0.0.1", "ff02::1"]
)
def test_no_other_form_of_an_address_passes_for_a_peers(host: str) -> None:
    assert not Address(host, 5000, http=True).is_usable(loopback=False)
