from __future__ import annotations

import pytest
import trio
import trio.testing

from spegel_consul.join import Bootstrap
from spegel_consul.join.sources.static import StaticBootstrap
from spegel_consul.peers import PeerInfo

ID = "12D3KooWGbGLkFLkYnFMCC6QRJHfYgdFWNcRXhNMoFJnLDsyFXnN"


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("/ip4/10.0.0.7/tcp/5001", PeerInfo(None, ("/ip4/10.0.0.7/tcp/5001",))),
        (f"/ip4/10.0.0.7/tcp/5001/p2p/{ID}", PeerInfo(ID, ("/ip4/10.0.0.7/tcp/5001",))),
        (f" /ip6/fd00::7/tcp/5001/p2p/{ID}\n", PeerInfo(ID, ("/ip6/fd00::7/tcp/5001",))),
        ("/dns4/seed.example/tcp/5001", PeerInfo(None, ("/dns4/seed.example/tcp/5001",))),
        ("10.0.0.7:5001", PeerInfo(None, ("/ip4/10.0.0.7/tcp/5001",))),
        ("[fd00::7]:5001", PeerInfo(None, ("/ip6/fd00::7/tcp/5001",))),
        ("seed.example:5001", PeerInfo(None, ("/dns/seed.example/tcp/5001",))),
    ],
)
def test_addresses(address: str, peer: PeerInfo) -> None:
    bootstrap: Bootstrap = StaticBootstrap([address])
    assert bootstrap.peers() == (peer,)
    assert bootstrap.problem is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.7",
        "fd00::7:5001x",
        "seed:port",
        "seed:99999",
        "http://seed:1",
        "/ip4/10.0.0/tcp/1",
        "/ip4/10.0.0.7/udp/1",
        "/ip4/10.0.0.7/tcp/70000",
        "/ip4/10.0.0.7/tcp/1/p2p/12D3KooWBad",
        "/ip4/10.0.0.7/tcp/1/p2p/",
        "/ip4/10.0.0.7/tcp/1/p2p",
        f"/ip4/10.0.0.7/tcp/1/p2p/{ID}/p2p-circuit",
        "/ip4/10.0.0.7/tcp/1/http",
    ],
)
def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(ValueError, match=r"^bootstrap peer '"):
        StaticBootstrap([address])


def test_addresses_of_one_peer_belong_together() -> None:
    first, second = f"/ip4/10.0.0.7/tcp/1/p2p/{ID}", f"/ip6/fd00::7/tcp/1/p2p/{ID}"
    assert StaticBootstrap([first, second, first]).peers() == (
        PeerInfo(ID, ("/ip4/10.0.0.7/tcp/1", "/ip6/fd00::7/tcp/1")),
    )


async def test_it_never_changes(autojump_clock: trio.testing.MockClock) -> None:
    bootstrap = StaticBootstrap(["10.0.0.7:1", "10.0.0.8:1"])
    async with trio.open_nursery() as nursery:
        await nursery.start(bootstrap.run)
        await bootstrap.changed(())
        with trio.move_on_after(1000) as scope:
            await bootstrap.changed(tuple(reversed(bootstrap.peers())))
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()
