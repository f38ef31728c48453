import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.places import (
    ELSEWHERE,
    MAX_NAME,
    NOWHERE,
    SAME_DATACENTER,
    SAME_RACK,
    SAME_ZONE,
    Place,
    decode_place,
    known_name,
    parse_place,
)

HERE = Place("dc1", "a", "r1")


@pytest.mark.parametrize(
    ("there", "distance", "far"),
    [
        (HERE, SAME_RACK, False),
        (Place("dc1", "a", "r2"), SAME_ZONE, False),
        (Place("dc1", "a"), SAME_ZONE, False),
        (Place("dc1", "b", "r1"), SAME_DATACENTER, True),
        (Place("dc1"), SAME_DATACENTER, False),
        (Place("", "a"), SAME_ZONE, False),
        (Place("", "b"), SAME_DATACENTER, True),
        (Place("dc2", "a", "r1"), ELSEWHERE, True),
        (Place("dc2"), ELSEWHERE, True),
        (Place("dc1", "", "r1"), SAME_RACK, False),
        (NOWHERE, SAME_DATACENTER, False),
    ],
)
def test_what_is_near(there: Place, distance: int, far: bool) -> None:
    assert (HERE.distance(there), HERE.is_far(there)) == (distance, far)
    assert (there.distance(HERE), there.is_far(HERE)) == (distance, far)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", NOWHERE),
        ("eu-1a", Place(zone="eu-1a")),
        (" eu-1a ", Place(zone="eu-1a")),
        ("dc1/eu-1a", Place("dc1", "eu-1a")),
        ("dc1/eu-1a/r7", Place("dc1", "eu-1a", "r7")),
        ("dc1//r7", Place("dc1", "", "r7")),
        ("/eu-1a", Place(zone="eu-1a")),
        ("dc1/${meta.zone}", Place("dc1")),
        ("${node.datacenter}/${meta.zone}/${meta.rack}", NOWHERE),
    ],
)
def test_a_flag_is_a_place(text: str, place: Place) -> None:
    assert parse_place(text) == place
    assert parse_place(str(place)) == place


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("z" * (10 << 10), "10240 characters: at most 64"),
        ("zürich", "character that is not allowed"),
        ("a b", "character that is not allowed"),
        ("a\nb", "character that is not allowed"),
        ("a/b/c/d", "too many parts"),
        ("a$b", "character that is not allowed"),
    ],
)
def test_a_wrong_flag_says_what_to_do(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as told:
        parse_place(text)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"dc1/a/r1", HERE),
        (b"dc1/a", Place("dc1", "a")),
        (b"dc1", Place("dc1")),
        ("dc1/zürich/r1".encode(), Place("dc1", "", "r1")),
        (b"dc1/" + b"z" * 65, Place("dc1")),
        (b"z" * (10 << 10), NOWHERE),
        (b"a/b/c/d", NOWHERE),
        (b"\xff\xfe", NOWHERE),
    ],
)
def test_names_of_other_nodes_that_are_none_are_left_out(raw: bytes, place: Place) -> None:
    assert decode_place(raw) == place
    assert decode_place(raw) is decode_place(bytes(raw)), "one object for all members of a place"


names = st.from_regex(r"[A-Za-z0-9._:-]{1,64}\Z", fullmatch=True) | st.just("")


@given(st.builds(Place, names, names, names))
def test_a_place_survives_the_wire(place: Place) -> None:
    assert decode_place(place.encode()) == place


@given(st.binary(max_size=300))
def test_any_bytes_are_a_short_place(raw: bytes) -> None:
    place = decode_place(raw)
    assert all(len(name) <= MAX_NAME and (not name or known_name(name)) for name in (*place.area, place.rack))
