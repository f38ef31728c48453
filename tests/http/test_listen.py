import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.http.server.listen import ListenAddress, ListenError, listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":5000", "", 5000),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:5000", "::1", 5000),
        ("[::]:65535", "::", 65535),
        ("node-7.example:80", "node-7.example", 80),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = ListenAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert ListenAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5000",
        "host",
        "host:",
        ":65536",
        ":-1",
        ":5e3",
        "::1:5000",
        "[::1]",
        "[::g]:1",
        "[10.0.0.1]:1",
        "a b:1",
        ":٣",
    ],
)
def test_what_is_no_address_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        ListenAddress.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = ListenAddress.parse(text)
    except ValueError as exc:
        assert "\n" not in str(exc) or "\n" in text
    else:
        assert 0 <= address.port <= 65535


def test_all_interfaces_means_both_families() -> None:
    with listen(ListenAddress.parse(":0"), "--x") as sock:
        port = sock.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        if sock.family == socket.AF_INET6:
            socket.create_connection(("::1", port)).close()


@pytest.mark.parametrize("text", ["127.0.0.1:{port}", ":{port}"])
def test_a_port_in_use_is_named(text: str) -> None:
    with listen(ListenAddress.parse(":0"), "--x") as sock:
        address = ListenAddress.parse(text.format(port=sock.getsockname()[1]))
        with pytest.raises(ListenError, match=f"--registry-addr .*:{address.port}: address already in use"):
            listen(address, "--registry-addr")


def test_other_failures_are_named() -> None:
    with pytest.raises(ListenError, match="does not have that address"):
        listen(ListenAddress("192.0.2.1", 0), "--x")
    with pytest.raises(ListenError, match="can't be resolved"):
        listen(ListenAddress("nowhere.invalid", 0), "--x")
