import ipaddress
import socket

import pytest

from spegel_consul.node import address
from spegel_consul.node.address import NoAddress, advertised


def test_what_is_given_wins_over_what_is_bound() -> None:
    assert advertised("10.0.0.7", "127.0.0.1") == "10.0.0.7"
    assert advertised(None, "127.0.0.1") == "127.0.0.1"
    assert advertised(None, "::1") == "::1"
    assert advertised(None, "localhost") in ("127.0.0.1", "::1")


@pytest.mark.parametrize("bound", ["", "0.0.0.0", "::"])
def test_all_interfaces_mean_the_route_out(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "route_out", lambda: "198.51.100.7")
    assert advertised(None, bound) == "198.51.100.7"


def test_the_route_out_is_never_loopback() -> None:
    try:
        found = address.route_out()
    except NoAddress as exc:
        assert "--advertise-addr" in str(exc)
    else:
        assert not ipaddress.ip_address(found).is_loopback


def test_no_route_out_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: socket.socket, target: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(address.socket.socket, "connect", unreachable)
    with pytest.raises(NoAddress, match="set --advertise-addr"):
        advertised(None, "")


def test_a_host_that_does_not_resolve_says_what_to_do() -> None:
    with pytest.raises(NoAddress, match="set --advertise-addr"):
        advertised(None, "nowhere.invalid")
