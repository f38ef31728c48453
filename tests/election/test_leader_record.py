from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.election.leader_record import LeaderRecord, vacant
from spegel_consul.peers import PeerInfo

ME = LeaderRecord(
    "12D3",
    ("/ip4/10.0.0.7/tcp/5001/p2p/12D3", "/ip6/fd00::7/tcp/5001/p2p/12D3"),
    node="client-7",
    http="http://10.0.0.7:9090/id",
    registry="http://10.0.0.7:5000",
    version="0.1.0",
)


def test_round_trip() -> None:
    value = ME.to_json(session="s-1", since="2026-11-23T16:34:43Z")
    read = LeaderRecord.parse(value)
    assert read is not None
    assert read.identity == ME.identity
    assert (read.session, read.since, read.node) == ("s-1", "2026-11-23T16:34:43Z", "client-7")
    assert value.endswith(b"}\n")
    fields = json.loads(value)
    assert list(fields)[:3] == ["schema", "state", "peer_id"]
    assert (fields["schema"], fields["state"]) == (1, "held")
    assert "alloc_id" not in fields


def test_to_peer_has_no_p2p_part() -> None:
    assert ME.to_peer() == PeerInfo("12D3", ("/ip4/10.0.0.7/tcp/5001", "/ip6/fd00::7/tcp/5001"))


def test_a_vacant_mark_is_no_record() -> None:
    value = vacant(released_by="client-7", at="2026-11-23T16:34:43Z")
    assert json.loads(value)["released_by"] == "client-7"
    assert LeaderRecord.parse(value) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"peer_id": "a"}',
        b'{"peer_id": 7, "addrs": ["/ip4/1.2.3.4/tcp/1"]}',
        b'{"peer_id": "", "addrs": ["/ip4/1.2.3.4/tcp/1"]}',
        b'{"peer_id": "a", "addrs": "x"}',
        b'{"peer_id": "a", "addrs": [7, null]}',
        b'{"peer_id": "a", "addrs": 7}',
        b'{"state": "vacant", "peer_id": "a", "addrs": ["/ip4/1.2.3.4/tcp/1"]}',
        b"[" * 100_000,
    ],
)
def test_other_data_is_no_record(value: bytes) -> None:
    assert LeaderRecord.parse(value) is None


def test_unknown_and_mistyped_fields_are_left_out() -> None:
    value = b'{"schema": 9, "peer_id": "a", "addrs": ["/x", "/ip4/1.2.3.4/tcp/1", 7], "http": 7, "new": {}}'
    assert LeaderRecord.parse(value) == LeaderRecord("a", ("/ip4/1.2.3.4/tcp/1",))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["peer_id", "addrs", "state"]), inner),
    max_leaves=8,
)


@given(st.binary() | _json.map(lambda value: json.dumps(value).encode()))
def test_parsing_never_raises(value: bytes) -> None:
    record = LeaderRecord.parse(value)
    if record is not None:
        assert record.to_peer().id
        assert record.to_peer().addrs
