import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.multiaddrs import Address, contact
from spegel_consul.places import Place
from spegel_consul.ring.dht import messages as messages_of_the_ring
from spegel_consul.ring.dht.messages import (
    MAX_KEY,
    MAX_PEERS,
    Frames,
    MemberReport,
    Message,
    MessageType,
    WireError,
    WirePeer,
    decode,
    decode_members,
    decode_withdrawal,
    encode,
    encode_members,
    encode_peer,
    encode_withdrawal,
    frame,
    uvarint,
)

peers = st.builds(
    WirePeer,
    st.binary(min_size=1, max_size=64),
    st.lists(st.binary(max_size=40), max_size=5).map(tuple),
)
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    st.binary(max_size=MAX_KEY),
    st.lists(peers, max_size=4).map(tuple),
    st.lists(peers, max_size=4).map(tuple),
    st.booleans(),
)


def bodies(data: bytes) -> list[bytes]:
    return Frames().feed(data)


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert [decode(body) for body in bodies(encode(message))] == [message]


names = st.sampled_from(["", "a", "eu-central-1b", "z" * 64])
places = st.builds(Place, names, names, names)


@given(st.lists(st.builds(MemberReport, peers, st.integers(0, 1 << 40), places), max_size=5))
def test_a_member_list_survives_the_wire(reports: list[MemberReport]) -> None:
    assert [tuple(decode_members(body)) for body in bodies(encode_members(reports))] == [tuple(reports)]


def test_a_member_list_without_places_is_byte_for_byte_that_of_older_nodes() -> None:
    peer = WirePeer(b"id", (b"address",))
    old = frame(b"\x0a" + frame(b"\x0a" + frame(encode_peer(peer)) + b"\x10" + uvarint(300)))
    assert encode_members([MemberReport(peer, 300)]) == old


def test_fields_of_newer_nodes_are_skipped() -> None:
    """A place is to older nodes what these fields are to this one, because all of them skip the fields of tomorrow."""
    peer, unknown = WirePeer(b"id"), b"\x22" + frame(b"text") + b"\x28\x05" + b"\x31" + bytes(8)
    report = b"\x0a" + frame(encode_peer(peer)) + b"\x10\x07" + b"\x1a" + frame(b"dc1/a") + unknown
    assert list(decode_members(b"\x0a" + frame(report))) == [MemberReport(peer, 7, Place("dc1", "a"))]


@pytest.mark.parametrize("raw", ["zürich".encode(), b"z" * 10240, b"a/b/c/d", b"\xff" * 9])
def test_a_place_that_is_none_does_not_spoil_the_report(raw: bytes) -> None:
    report = b"\x0a" + frame(encode_peer(WirePeer(b"id"))) + b"\x10\x07" + b"\x1a" + frame(raw)
    assert list(decode_members(b"\x0a" + frame(report))) == [MemberReport(WirePeer(b"id"), 7)]


@given(st.binary(max_size=300))
def test_garbage_is_a_message_or_a_typed_error(data: bytes) -> None:
    for read in (decode, lambda data: list(decode_members(data)), decode_withdrawal, Frames(1000).feed):
        try:
            read(data)
        except WireError as exc:
            assert len(str(exc)) < 200


@given(messages, st.data())
def test_damaged_messages_are_messages_or_typed_errors(message: Message, data: st.DataObject) -> None:
    body = bytearray(bodies(encode(message))[0])
    if body:
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(body))
    except WireError:
        pass


@given(st.lists(st.binary(max_size=400), max_size=6), st.integers(1, 50))
def test_frames_are_cut_the_same_however_they_arrive(payloads: list[bytes], step: int) -> None:
    data = b"".join(map(frame, payloads))
    frames = Frames()
    cut = [body for start in range(0, len(data), step) for body in frames.feed(data[start : start + step])]
    assert cut == payloads


def test_an_announced_length_beyond_the_limit_is_refused_before_it_arrives() -> None:
    assert Frames(1000).feed(frame(bytes(1000))) == [bytes(1000)]
    with pytest.raises(WireError, match="exceeds the limit"):
        Frames(1000).feed(uvarint(1001))
    with pytest.raises(WireError, match="length of a message"):
        Frames().feed(b"\xff" * 5)


def test_fields_that_nobody_needs_are_skipped() -> None:
    # by the field numbers of dht.proto: Message{type: ADD_PROVIDER, key: "key",
    # providerPeers: [{id: "id", addrs: ["ma"], connection: CONNECTED}]}
    plain = bytes.fromhex("080212036b65794a0a0a02696412026d611801")
    message = Message(MessageType.ADD_PROVIDER, b"key", (), (WirePeer(b"id", (b"ma",)),))
    # clusterLevelRaw (10), a record (3) and fields from the future
    assert decode(plain + bytes.fromhex("50001a036162639d0101020304a1010102030405060708")) == message


def test_two_hundred_providers_are_read_and_a_flood_is_cut() -> None:
    providers = tuple(WirePeer(b"\0\x24\x08\x01\x12\x20" + n.to_bytes(32, "big"), (b"ma",)) for n in range(1000))
    for count, read in ((200, 200), (1000, MAX_PEERS)):
        (body,) = bodies(encode(Message(MessageType.GET_PROVIDERS, b"key", (), providers[:count])))
        assert len(decode(body).providers) == read


@pytest.mark.parametrize("field", [b"\x10\x00", b"\x1a\x00", b"\x0a\x06\x0a\x04\x0a\x02id"])
def test_a_message_of_millions_of_fields_is_refused(field: bytes) -> None:
    """Skipping them all would take a second in one step."""
    for read in (decode, lambda body: list(decode_members(body)), decode_withdrawal):
        with pytest.raises(WireError):
            read(field * (2_000_000 // len(field)))


def test_of_many_fields_of_one_peer_or_report_the_first_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    real = messages_of_the_ring.fields

    def count(data: bytes) -> Iterator[tuple[int, int | bytes]]:
        nonlocal seen
        for field in real(data):
            seen += 1
            yield field

    monkeypatch.setattr(messages_of_the_ring, "fields", count)
    addresses = b"\x12" + frame(b"ma")
    peer = b"\x0a" + frame(b"ID") + addresses * 1000
    report = (b"\x0a" + frame(peer)) * 1000
    assert list(decode_members(b"\x0a" + frame(report))) == [MemberReport(WirePeer(b"ID", (b"ma",) * 16), 0)]
    assert seen < 100


@given(st.lists(st.binary(max_size=MAX_KEY), max_size=20))
def test_a_withdrawal_survives_the_wire(keys: list[bytes]) -> None:
    assert [decode_withdrawal(body) for body in bodies(encode_withdrawal(keys))] == [keys]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "type 0"),
        ("0800", "type 0"),
        ("0804" + "12" + "51" + "00" * 81, "key of 81 bytes"),
        ("08034200", "peer id of 0 bytes"),
        ("0803120561", "longer than its message"),
        ("08030b", "wire type 3"),
        ("08" + "ff" * 11, "incomplete or too long"),
        ("08", "incomplete or too long"),
    ],
)
def test_malformed_messages_say_what_is_wrong(body: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(bytes.fromhex(body))


def test_long_fields_are_not_remembered() -> None:
    def read(number: int) -> None:
        long = number.to_bytes(4, "big") + bytes(100_000)
        peer = encode_peer(WirePeer(b"id", (long, b"\x04\x0a\0\0\x01\x06\x13\x89")))
        (report,) = decode_members(b"\x0a" + frame(b"\x0a" + frame(peer) + b"\x1a" + frame(long)))
        assert contact(report.peer.id, report.peer.addresses, loopback=False).routers == (Address("10.0.0.1", 5001),)
        encode_peer.cache_clear()  # which this node calls only with what it has accepted

    read(0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 50):
            read(number)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
