import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.ring.dht.claim_messages import (
    MAX_CLAIM_MESSAGE,
    WireVerdict,
    decode_claim,
    decode_verdict,
    encode_claim,
    encode_verdict,
)
from spegel_consul.ring.dht.claim_reports import Report, What, Why
from spegel_consul.ring.dht.messages import Frames, WireError, WirePeer, frame, uvarint

GROUP = bytes(range(32))
ids = st.binary(min_size=1, max_size=64)
reports = st.builds(
    Report,
    lost=ids,
    why=st.sampled_from(Why),
    serves=st.booleans(),
    have=st.integers(0, 1 << 62),
    working=st.booleans(),
    behind=st.lists(ids, max_size=16).map(tuple),
    held=st.one_of(st.just(b""), ids),
    near_only=st.booleans(),
    left=st.integers(0, 1 << 62),
    declines=st.booleans(),
)
peers = st.builds(WirePeer, ids, st.lists(st.binary(max_size=40), max_size=5).map(tuple))
verdicts = st.one_of(
    st.builds(
        WireVerdict,
        st.just(GROUP),
        st.just(What.FOLLOW),
        st.lists(peers, min_size=1, max_size=3).map(tuple),
        st.sampled_from([0.5, 2.0, 20.0, 60.0]),
        st.booleans(),
    ),
    st.builds(WireVerdict, st.just(GROUP), st.sampled_from([What.CLAIM, What.ALONE]), st.just(()), st.just(2.0)),
)


def body(framed: bytes) -> bytes:
    (only,) = Frames(MAX_CLAIM_MESSAGE).feed(framed)
    return only


@given(st.binary(min_size=32, max_size=32), reports)
def test_a_claim_survives_the_wire(group: bytes, report: Report) -> None:
    assert decode_claim(body(encode_claim(group, report))) == (group, report)


@given(verdicts)
def test_a_verdict_survives_the_wire(verdict: WireVerdict) -> None:
    assert decode_verdict(body(encode_verdict(verdict))) == verdict


@given(st.binary(max_size=300), reports, verdicts, st.data())
def test_junk_and_damage_are_messages_or_typed_errors(
    junk: bytes, report: Report, verdict: WireVerdict, data: st.DataObject
) -> None:
    damaged = []
    for whole in (body(encode_claim(GROUP, report)), body(encode_verdict(verdict))):
        some = bytearray(whole)
        some[data.draw(st.integers(0, len(some) - 1))] = data.draw(st.integers(0, 255))
        damaged.append(bytes(some))
    for bad in (junk, *damaged):
        for read in (decode_claim, decode_verdict):
            try:
                read(bad)
            except WireError as exc:
                assert len(str(exc)) < 200


def test_a_verdict_never_exceeds_the_limit() -> None:
    large = WirePeer(bytes(64), tuple(bytes([number]) * 160 for number in range(16)))
    sent = encode_verdict(WireVerdict(GROUP, What.FOLLOW, (large, large, large)))
    assert len(sent) <= MAX_CLAIM_MESSAGE
    assert decode_verdict(body(sent)).sources == (large,)


def test_what_later_versions_add_is_skipped() -> None:
    later = b"\x78\x01\x82\x01\x03new"
    assert decode_claim(body(encode_claim(GROUP, Report())) + later) == (GROUP, Report())
    assert decode_claim(b"\x0a" + frame(GROUP) + b"\x12\x01x\x18\x63") == (GROUP, Report(lost=b"x", why=Why.NONE))


@pytest.mark.parametrize(
    ("read", "message", "reason"),
    [
        (decode_claim, b"", "has 0 bytes"),
        (decode_claim, b"\x0a" + frame(b"short"), "has 5 bytes"),
        (decode_claim, b"\x0a" + frame(GROUP) + b"\x12" + frame(bytes(65)), "peer id of 65 bytes"),
        (decode_claim, b"\x0a" + frame(GROUP) + b"\x3a" + frame(b""), "peer id of 0 bytes"),
        (decode_verdict, b"\x08\x01", "has 0 bytes"),
        (decode_verdict, b"\x08\x07\x22" + frame(GROUP), "verdict 7"),
        (decode_verdict, b"\x08\x02\x22" + frame(GROUP), "names no source"),
    ],
)
def test_bad_messages_say_what_is_wrong(read: object, message: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read(message)  # type: ignore[operator]


def test_the_pause_of_a_verdict_is_within_limits() -> None:
    for sent, read in ((0, 0.5), (1, 0.5), (1 << 60, 60.0)):
        assert decode_verdict(b"\x08\x01\x22" + frame(GROUP) + b"\x18" + uvarint(sent)).again == read
