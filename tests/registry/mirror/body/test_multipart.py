"""The frame around several ranges."""

from __future__ import annotations

import email.parser
import email.policy

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.ranges import ByteRange, parse_ranges
from spegel_consul.registry.mirror.body.multipart import Multipart

SPANS = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 99)), min_size=2, max_size=64, unique=True)


def body_of(multipart: Multipart, content: bytes) -> bytes:
    parts = (multipart.before(place) + content[span.start : span.stop] for place, span in enumerate(multipart.spans))
    return b"".join(parts) + multipart.end


@given(SPANS)
def test_the_length_is_that_of_the_body(spans: list[tuple[int, int]]) -> None:
    multipart = Multipart("a/b", tuple(ByteRange(start, start + length, 600) for start, length in spans))
    assert multipart.length == len(body_of(multipart, bytes(600)))


def test_another_parser_reads_it() -> None:
    content = "".join(chr(33 + at % 90) for at in range(600)).encode()
    wanted = parse_ranges("bytes=500-,0-9,100-199")
    assert wanted is not None
    multipart = Multipart("application/vnd.oci.image.layer.v1.tar+gzip", wanted.within(600))
    head = f"Content-Type: {multipart.content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body_of(multipart, content))
    parts = list(message.iter_parts())
    assert not message.defects
    assert [part["content-range"] for part in parts] == ["bytes 500-599/600", "bytes 0-9/600", "bytes 100-199/600"]
    assert {part.get_content_type() for part in parts} == {multipart.media_type}
    assert [part.get_payload(decode=True) for part in parts] == [content[500:], content[:10], content[100:200]]


def test_no_boundary_comes_twice() -> None:
    spans = (ByteRange(0, 1, 9), ByteRange(5, 6, 9))
    assert len({Multipart("a/b", spans).boundary for _ in range(1000)}) == 1000
