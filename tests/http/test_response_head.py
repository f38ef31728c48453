"""The head of a peer's answer: what is read by hand is what h11 would read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.http.response_head import MAX_HEAD, Reply, ReplyError, _parse_any, parse_reply, without_interim

TOKEN = st.text("abcxyzABC019-_", min_size=1, max_size=8)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)


def test_a_plain_answer() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: a/b \r\n\r\nhe"
    assert parse_reply(data, "GET") == Reply(
        200, {b"content-length": b"5", b"content-type": b"a/b"}, length=5, body=b"he", reusable=True
    )
    assert parse_reply(data[:-4], "GET") is None


@pytest.mark.parametrize(
    ("fields", "method", "length", "reusable"),
    [
        (b"Content-Length: 3\r\nConnection: keep-alive\r\n", "GET", 3, True),
        (b"Content-Length: 3\r\nConnection: close\r\n", "GET", 3, False),
        (b"Content-Length: 3\r\nConnection: upgrade\r\n", "GET", 3, False),
        (b"Content-Length: 3\r\n", "HEAD", 0, True),
        (b"Transfer-Encoding: chunked\r\n", "GET", 0, False),
        (b"", "GET", 0, False),
    ],
)
def test_how_the_body_is_framed(fields: bytes, method: str, length: int, reusable: bool) -> None:
    reply = parse_reply(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n", method)
    assert reply is not None
    assert (reply.length, reply.reusable) == (length, reusable)


@pytest.mark.parametrize(
    ("data", "left", "count"),
    [
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 102 \r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\n",
            2,
        ),
        (b"HTTP/1.1 103 X\r\n\r\n", b"", 1),
        (b"HTTP/1.1 103 X\r\nlink: y\r\n", b"HTTP/1.1 103 X\r\nlink: y\r\n", 0),
        (b"HTTP/1.1 101 X\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n", 0),
        (b"HTTP/1.1 200 X\r\n\r\nHTTP/1.1 103 X\r\n\r\n", b"HTTP/1.1 200 X\r\n\r\nHTTP/1.1 103 X\r\n\r\n", 0),
    ],
)
def test_complete_interim_answers_are_cut_off(data: bytes, left: bytes, count: int) -> None:
    assert without_interim(data) == (left, count)


def test_bytes_behind_the_body_spoil_the_connection() -> None:
    reply = parse_reply(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nabcd", "GET")
    assert reply is not None
    assert (reply.body, reply.reusable) == (b"ab", False)


def test_interim_answers_are_skipped() -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    reply = parse_reply(data, "GET")
    assert reply is not None
    assert (reply.status, reply.body) == (200, b"ab")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD + b"\r\n",
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(ReplyError):
        parse_reply(data, "GET")


@given(
    status=st.integers(200, 599),
    fields=st.lists(st.tuples(TOKEN, VALUE), max_size=5),
    length=st.integers(0, 20),
    body=st.binary(max_size=30),
    method=st.sampled_from(["GET", "HEAD"]),
    connection=st.sampled_from([None, "keep-alive", "close"]),
)
def test_by_hand_and_by_h11_are_the_same(
    status: int, fields: list[tuple[str, str]], length: int, body: bytes, method: str, connection: str | None
) -> None:
    lines = [
        f"HTTP/1.1 {status} Reason",
        f"Content-Length: {length}",
        *(f"X-{name}: {value}" for name, value in fields),
    ]
    if connection is not None:
        lines.append(f"Connection: {connection}")
    data = ("\r\n".join(lines) + "\r\n\r\n").encode() + (b"" if method == "HEAD" else body)
    by_hand, by_h11 = parse_reply(data, method), _parse_any(data, method)
    assert by_hand is not None
    assert by_h11 is not None
    assert (by_hand.status, by_hand.length, by_hand.body) == (by_h11.status, by_h11.length, by_h11.body)
    assert by_hand.headers == by_h11.headers
    # where they differ, the hand is the more careful one or h11 does not reuse what it could
    assert by_hand.reusable or not by_h11.reusable
