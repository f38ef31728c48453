import ipaddress
import socket

import pytest

from spegel_consul.preflight import node_address
from spegel_consul.preflight.node_address import LocalAddress, NoAddress, NodeAddress, advertised, named, one_or_two


def test_what_is_given_wins_over_what_is_bound() -> None:
    assert advertised((NodeAddress("10.0.0.7"), NodeAddress("fd00::7")), "127.0.0.1") == NodeAddress("10.0.0.7")
    assert advertised((), "127.0.0.1") == NodeAddress("127.0.0.1")
    assert advertised((), "::1") == NodeAddress("::1")
    assert advertised((), "localhost").ip in ("127.0.0.1", "::1")


@pytest.mark.parametrize("bound", ["", "0.0.0.0", "::"])
def test_all_interfaces_mean_the_default_route(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_address, "default_route_source", lambda: "198.51.100.7")
    assert advertised((), bound).ip == "198.51.100.7"


def test_the_default_route_is_never_loopback() -> None:
    try:
        found = node_address.default_route_source()
    except NoAddress as exc:
        assert "--advertise-addr" in str(exc)
    else:
        assert not ipaddress.ip_address(found).is_loopback


def test_no_default_route_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: socket.socket, target: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(node_address.socket.socket, "connect", unreachable)
    with pytest.raises(NoAddress, match="set --advertise-addr"):
        advertised((), "")


def test_a_host_that_does_not_resolve_says_what_to_do() -> None:
    with pytest.raises(NoAddress, match="set --advertise-addr"):
        advertised((), "nowhere.invalid")


MACHINE = tuple(
    LocalAddress(interface, ipaddress.ip_address(ip))
    for interface, ip in (
        ("lo", "127.0.0.1"),
        ("lo", "::1"),
        ("eth0", "10.0.0.7"),
        ("eth0", "2001:db8:1::7"),
        ("eth0", "fe80::7"),
        ("eth1", "172.20.0.7"),
        ("eth1", "fd00::7"),
        ("wan", "9.9.9.9"),
    )
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_address, "local_addresses", lambda: MACHINE)
    monkeypatch.setattr(node_address, "_default_route_sources", lambda: ["10.0.0.7", "9.9.9.9"])


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),  # the host's, seen from a bridge network
        (" 10.0.0.7 ", "10.0.0.7"),
        ("[fd00::7]", "fd00::7"),
        ("FD00::0007", "fd00::7"),
        ("eth0", "10.0.0.7"),
        ("eth1", "172.20.0.7"),
        ("lo", "127.0.0.1"),
        ("10.0.0.0/8", "10.0.0.7"),
        ("172.16.0.0/12", "172.20.0.7"),
        ("172.20.0.99/24", "172.20.0.7"),
        ("fd00::/8", "fd00::7"),
        ("::/0", "2001:db8:1::7"),
        ("0.0.0.0/0", "10.0.0.7"),
        ("{{ GetPrivateIP }}", "10.0.0.7"),
        ("{{GetPrivateIP}}", "10.0.0.7"),
        ("{{ GetPublicIP }}", "9.9.9.9"),
        ('{{ GetInterfaceIP "eth1" }}', "172.20.0.7"),
        ('{{ GetAllInterfaces | include "network" "172.16.0.0/12" | attr "address" }}', "172.20.0.7"),
    ],
)
def test_an_address_is_named_in_many_ways(text: str, expected: str) -> None:
    assert named(text) == expected


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eth9", "'eth9' is neither an IP address nor an interface that has one; this machine has 10.0.0.7 (eth0), 2"),
        ("10.0.0.300", "neither an IP address nor an interface"),
        ("192.168.0.0/16", r"no address in 192.168.0.0/16; this machine has 10.0.0.7 \(eth0\)"),
        ("10.0.0.0/99", "is not a network"),
        ("0.0.0.0", "is not an address that a peer can connect to"),
        ("224.0.0.1", "is not an address that a peer can connect to"),
        ("{{ GetPrivateIPs }}", "is not supported; the supported templates of go-sockaddr are {{ GetPrivateIP }}"),
        ('{{ GetInterfaceIP "eth9" }}', "this machine has"),
        ("", "neither an IP address nor an interface"),
    ],
)
def test_a_wrong_one_says_what_there_is(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected.replace("(eth0), 2", r"\(eth0\), 2")) as caught:
        named(text)
    assert "\n" not in str(caught.value)


def test_a_machine_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_address, "local_addresses", lambda: MACHINE[:2])
    monkeypatch.setattr(node_address, "_default_route_sources", list)
    with pytest.raises(ValueError, match="this machine has no address but loopback"):
        named("{{ GetPrivateIP }}")


def test_this_machine_has_loopback() -> None:
    assert LocalAddress("lo", ipaddress.ip_address("127.0.0.1")) in node_address.local_addresses()


def test_one_address_or_one_of_each_family() -> None:
    assert one_or_two("10.0.0.7") == (NodeAddress("10.0.0.7"),)
    assert one_or_two("fd00::7, 10.0.0.7") == (NodeAddress("fd00::7"), NodeAddress("10.0.0.7"))
    for wrong in ("10.0.0.7,10.0.0.8", "fd00::7,fd00::8", "10.0.0.7,fd00::7,10.0.0.8"):
        with pytest.raises(ValueError, match=r"give one address, or one of IPv4 and one of IPv6; these are .*, "):
            one_or_two(wrong)


@pytest.mark.usefixtures("machine")
def test_an_address_that_was_chosen_can_be_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [*one_or_two("10.0.0.0/8,fd00::/8"), advertised((), "localhost"), advertised((), "")]
    assert [each.ip for each in chosen[:2]] == ["10.0.0.7", "fd00::7"]
    assert [each.again() if each.again else None for each in chosen] == [each.ip for each in chosen]
    monkeypatch.setattr(node_address, "local_addresses", lambda: MACHINE[:2])
    assert chosen[0].again is not None
    with pytest.raises(ValueError, match="no address in"):
        chosen[0].again()
