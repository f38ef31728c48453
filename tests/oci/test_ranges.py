import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.errors import RangeInvalid, TooManyRanges
from spegel_consul.oci.ranges import MOST_RANGES, ByteRange, parse_ranges


def spans_of(header: str, size: int) -> list[tuple[int, int]] | None:
    """The starts and stops, or None if the header is ignored."""
    wanted = parse_ranges(header)
    return None if wanted is None else [(span.start, span.stop) for span in wanted.within(size)]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=10-", [(10, 100)]),
        ("bytes=10-19", [(10, 20)]),
        ("bytes=10-1000", [(10, 100)]),
        ("bytes=0-1000", [(0, 100)]),
        ("bytes=99-99", [(99, 100)]),
        ("bytes=-1", [(99, 100)]),
        ("bytes=-500", [(0, 100)]),
        ("Bytes = 1 - 2", [(1, 3)]),
        (f"bytes=10-{'9' * 5000}", [(10, 100)]),
        (f"bytes=-{'9' * 5000}", [(0, 100)]),
        (f"bytes={'0' * 5000}1-2", [(1, 3)]),
        ("bytes=0-1,5-6", [(0, 2), (5, 7)]),
        ("bytes=5-6,0-1", [(5, 7), (0, 2)]),
        ("bytes= ,\t0-1 ,, 5-6,", [(0, 2), (5, 7)]),
        ("bytes=0-1,2-3", [(0, 4)]),
        ("bytes=2-3,0-1", [(0, 4)]),
        ("bytes=0-1,3-4", [(0, 2), (3, 5)]),
        ("bytes=50-60,0-1,55-70,1-2", [(50, 71), (0, 3)]),
        ("bytes=-10,85-89", [(85, 100)]),
        ("bytes=-10,80-85", [(90, 100), (80, 86)]),
        ("bytes=0-1,200-300,-0", [(0, 2)]),
        ("bytes=0-0,-1", [(0, 1), (99, 100)]),
    ],
)
def test_ranges(header: str, expected: list[tuple[int, int]]) -> None:
    assert spans_of(header, 100) == expected


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=,", "bytes=5-1", "lines=0-1", "bytes=a-b", "bytes=٣-٤", "bytes=1"),
        *("bytes=0-1,5-1", "bytes=0-1;5-6", "bytes=0-1 5-6", "bytes=0-1,-", "bytes=--1", "bytes=1-2-3", "bytes=0-1\n"),
        *("bytes=+1-2", "bytes=0x1-2", "bytes=1_0-20", f"bytes={'9' * 5000}-{'9' * 4999}"),
        *("bytes=0-", "bytes=00-", "bytes=5-6,0-", "bytes=0-4,5-", f"bytes=0-{'9' * 20}"),
    ],
)
def test_ignored(header: str) -> None:
    assert parse_ranges(header) is None
    assert parse_ranges(None) is None


@pytest.mark.parametrize(
    "header",
    [
        *("bytes=100-", "bytes=100-200", "bytes=-0", "bytes=-0,100-,200-300"),
        *(f"bytes={'9' * 20}-", f"bytes={'9' * 99}-{'9' * 99}"),
    ],
)  # fmt: skip
def test_ranges_beyond_the_end_are_refused(header: str) -> None:
    with pytest.raises(RangeInvalid) as caught:
        spans_of(header, 100)
    assert caught.value.size == 100


def test_empty_content_has_no_range() -> None:
    for header in ("bytes=0-5", "bytes=-5"):
        with pytest.raises(RangeInvalid):
            spans_of(header, 0)


def test_there_is_an_end_to_ranges() -> None:
    for element in ("1-1", "-1", "1-"):
        assert parse_ranges("bytes=" + ",".join([element] * MOST_RANGES)) is not None
        with pytest.raises(TooManyRanges):
            parse_ranges("bytes=" + ",".join([element] * (MOST_RANGES + 1)))
    assert parse_ranges("bytes=1-1" + "," * 5000) is not None


SPECS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))),
        st.tuples(st.integers(1, 60), st.none()),
        st.tuples(st.none(), st.integers(0, 60)),
    ),
    min_size=1,
    max_size=8,
)
Spec = tuple[int | None, int | None]


def text_of(specs: list[Spec]) -> str:
    return "bytes=" + ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in specs)


def bytes_of(spec: Spec, size: int) -> set[int]:
    first, last = spec
    everything = range(size)
    if first is None:
        return set(everything[size - min(last or 0, size) :])
    return set(everything[first:] if last is None else everything[first : last + 1])


@given(SPECS, st.integers(0, 70))
def test_spans_are_what_was_asked_for(specs: list[Spec], size: int) -> None:
    wanted = parse_ranges(text_of(specs))
    expected = [bytes_of(spec, size) for spec in specs]
    if wanted is None:  # it was all, in the end
        assert set().union(*expected) == set(range(size))
        return
    assert parse_ranges(wanted.header) == wanted
    try:
        spans = wanted.within(size)
    except RangeInvalid:
        assert not any(expected)
        return
    sets = [set(range(span.start, span.stop)) for span in spans]
    assert set().union(*sets) == set().union(*expected)
    for place, one in enumerate(sets):
        assert one
        assert spans[place].size == size
        for other in sets[place + 1 :]:
            edge = one | {max(one) + 1, min(one) - 1}
            assert not edge & other, "two that overlap or touch"
    # in the order in which they were asked for
    places = [min(place for place, each in enumerate(expected) if each & one) for one in sets]
    assert places == sorted(places)


@given(SPECS, st.integers(0, 70))
def test_one_of_the_probes_exists_if_any_range_does(specs: list[Spec], size: int) -> None:
    wanted = parse_ranges(text_of(specs))
    if wanted is None:
        return
    assert all(not probe.several for probe in wanted.probes)
    found = []
    for probe in wanted.probes:
        try:
            found.append(probe.within(size))
        except RangeInvalid:
            pass
    try:
        wanted.within(size)
    except RangeInvalid:
        assert not found
    else:
        assert found


@given(st.text(max_size=60) | st.text("bytes=0123456789,- \t", max_size=60).map("bytes=".__add__), st.integers(0, 1000))
def test_any_header_is_ranges_or_ignored(header: str, size: int) -> None:
    try:
        spans = spans_of(header, size)
    except (RangeInvalid, TooManyRanges):
        return
    assert spans is None or all(0 <= start < stop <= size for start, stop in spans)


def test_what_is_said_of_a_range() -> None:
    span = ByteRange(5, 10, 100)
    assert (span.length, span.content_range, span.header) == (5, "bytes 5-9/100", "bytes=5-9")
