import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.errors import RangeInvalid
from spegel_consul.oci.ranges import ByteRange, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", ByteRange(0, 100, 100)),
        ("bytes=10-", ByteRange(10, 100, 100)),
        ("bytes=10-19", ByteRange(10, 20, 100)),
        ("bytes=10-1000", ByteRange(10, 100, 100)),
        ("bytes=99-99", ByteRange(99, 100, 100)),
        ("bytes=-1", ByteRange(99, 100, 100)),
        ("bytes=-500", ByteRange(0, 100, 100)),
        ("Bytes = 1-2", ByteRange(1, 3, 100)),
        (None, None),
        ("", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5-1", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
    ],
)
def test_ranges(header: str | None, expected: ByteRange | None) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_ranges_beyond_the_end_are_refused(header: str) -> None:
    with pytest.raises(RangeInvalid) as caught:
        parse_range(header, 100)
    assert caught.value.size == 100


def test_empty_content_has_no_range() -> None:
    with pytest.raises(RangeInvalid):
        parse_range("bytes=0-", 0)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_ranges_agree_with_slicing(first: int, last: int, size: int) -> None:
    content = bytes(range(size))
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except RangeInvalid:
        assert first >= size
        assert last >= first
    else:
        if found is None:
            assert last < first
        else:
            assert content[found.start : found.stop] == content[first : last + 1]
            assert found.content_range == f"bytes {found.start}-{found.stop - 1}/{size}"


@given(st.text(max_size=60), st.integers(0, 1000))
def test_any_header_is_a_range_or_ignored(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except RangeInvalid:
        return
    assert found is None or 0 <= found.start < found.stop <= size
