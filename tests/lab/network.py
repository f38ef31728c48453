# A bridge in a namespace of its own and one namespace per node: nothing is added to the machine's own network, so
# two runs don't meet and the machine's firewall doesn't matter.  There is no way out.  Nodes do have a default route,
# because its source address is the one that a node tells its peers; what would leave by it is refused at once, since
# a registry that doesn't answer would hold up each pull for minutes where a refused one costs nothing.

"""A network of nodes that can lose packets, peers and cables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from types import TracebackType

from lab.netns import Netns
from lab.process import Failed
from lab.run_dir import RunDir, sweep

SUBNET = "198.51.100.0/24"  # TEST-NET-2, RFC 5737
_GATEWAY = "198.51.100.1"  # nobody
_TRUNK = "trunk"
_RULES = f"""*filter
:INPUT ACCEPT
:OUTPUT ACCEPT
:LAB-IN -
:LAB-OUT -
-A INPUT -i eth0 -j LAB-IN
-A OUTPUT -o eth0 -j LAB-OUT
-A OUTPUT -o eth0 -d {SUBNET} -j ACCEPT
-A OUTPUT -o eth0 -d 224.0.0.0/4 -j ACCEPT
-A OUTPUT -o eth0 -p tcp -j REJECT --reject-with tcp-reset
-A OUTPUT -o eth0 -j REJECT --reject-with icmp-net-unreachable
COMMIT
"""


def address(index: int) -> str:
    return f"198.51.100.{10 + index}"


class Port:
    """A node's place in the network: its namespace, its address and its cable."""

    def __init__(self, index: int, netns: Netns, switch: Netns) -> None:
        self.index = index
        self.ip = address(index)
        self.netns = netns
        self._switch = switch
        self._cable = f"v{index}"

    def plug(self) -> None:
        name = self.netns.name
        self.netns.add()
        self._switch.ip(
            *f"link add eth0 netns {name} type veth peer name {self._cable} netns {self._switch.name}".split()
        )
        self._switch.ip("link", "set", self._cable, "master", "br0", "up")
        self.netns.ip("addr", "add", f"{self.ip}/24", "dev", "eth0")
        self._connect()
        subprocess.run(
            self.netns.inside(["iptables-restore"]),
            input=_RULES,
            text=True,
            check=True,
            timeout=10,
            capture_output=True,
        )

    def plug_into(self, bridge: str) -> None:
        """Plug the cable into another bridge of the switch."""
        self._switch.ip("link", "set", self._cable, "master", bridge)

    def link_down(self) -> None:
        """Pull the cable at the switch: the node's own interface loses its carrier."""
        self._switch.ip("link", "set", self._cable, "down")

    def link_up(self) -> None:
        self._switch.ip("link", "set", self._cable, "up")

    def drop(self, *peers: str) -> None:
        """Lose all packets from and to the addresses ``peers``, or to anybody."""
        for peer in peers or (SUBNET,):
            self._iptables("-A", "LAB-IN", "-s", peer, "-j", "DROP")
            self._iptables("-A", "LAB-OUT", "-d", peer, "-j", "DROP")

    def deafen(self, *peers: str) -> None:
        """Lose all packets from the addresses ``peers``; what is sent to them goes out."""
        for peer in peers:
            self._iptables("-A", "LAB-IN", "-s", peer, "-j", "DROP")

    def drop_port(self, port: int) -> None:
        """Lose what comes for a TCP port: its clients wait."""
        self._iptables("-A", "LAB-IN", "-p", "tcp", "--dport", str(port), "-j", "DROP")

    def reset_port(self, port: int) -> None:
        """Answer what comes for a TCP port with a reset, on open connections too."""
        self._iptables(*f"-A LAB-IN -p tcp --dport {port} -j REJECT --reject-with tcp-reset".split())

    def lose(self, probability: float) -> None:
        """Lose this part of the packets that arrive."""
        self._iptables(*f"-A LAB-IN -m statistic --mode random --probability {probability} -j DROP".split())

    def limit_rate(self, mbit: int) -> None:
        """Send no faster than this; 0 lifts the limit."""
        if mbit:
            self.netns.run(*f"tc qdisc replace dev eth0 root tbf rate {mbit}mbit burst 256kb latency 50ms".split())
        else:
            self.netns.run("tc", "qdisc", "del", "dev", "eth0", "root")

    def limit_incoming_rate(self, mbit: int) -> None:
        """Receive no faster than this, as behind a slow line; 0 lifts the limit."""
        if mbit:
            limit = f"tc qdisc replace dev {self._cable} root tbf rate {mbit}mbit burst 64kb latency 50ms"
            self._switch.run(*limit.split())
        else:
            self._switch.run("tc", "qdisc", "del", "dev", self._cable, "root")

    def sent_bytes(self) -> int:
        """Bytes that left by the cable since it was plugged in."""
        (link,) = json.loads(self.netns.ip("-json", "-statistics", "link", "show", "eth0"))
        return int(link["stats64"]["tx"]["bytes"])

    def heal(self) -> None:
        """Undo drop, deafen, drop_port, reset_port and lose."""
        self._iptables("-F", "LAB-IN")
        self._iptables("-F", "LAB-OUT")

    def _connect(self) -> None:
        self.netns.ip("link", "set", "eth0", "up")
        self.netns.ip("route", "add", "default", "via", _GATEWAY, "dev", "eth0")

    def _iptables(self, *words: str) -> None:
        self.netns.run("iptables", "-w", *words)


class Network:
    """``count`` nodes on one switch; everything is removed on exit."""

    def __init__(self, count: int, run_dir: RunDir) -> None:
        self._name = run_dir.name
        self._switch = Netns(f"{self._name}-sw")
        self.ports = [Port(index, Netns(f"{self._name}-n{index}"), self._switch) for index in range(count)]

    def __enter__(self) -> Network:
        try:
            sweep()
            self._switch.add()
            self._switch.ip("link", "add", "br0", "type", "bridge")
            self._switch.ip("link", "set", "br0", "up")
            for port in self.ports:
                port.plug()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.remove()

    def divide(self, ports: Sequence[Port], mbit: int) -> None:
        """Put ``ports`` behind a second bridge; one line of ``mbit`` each way leads to the first."""
        switch = self._switch
        switch.ip("link", "add", "br1", "type", "bridge")
        switch.ip("link", "set", "br1", "up")
        switch.ip(*f"link add {_TRUNK}0 type veth peer name {_TRUNK}1".split())
        for number in (0, 1):
            switch.ip("link", "set", f"{_TRUNK}{number}", "master", f"br{number}", "up")
            limit = f"tc qdisc replace dev {_TRUNK}{number} root tbf rate {mbit}mbit burst 64kb latency 50ms"
            switch.run(*limit.split())
        for port in ports:
            port.plug_into("br1")

    def cut(self) -> None:
        """Interrupt the line between the two bridges; the nodes notice no more than silence."""
        self._switch.ip("link", "set", f"{_TRUNK}0", "down")

    def mend(self) -> None:
        self._switch.ip("link", "set", f"{_TRUNK}0", "up")

    def crossed_bytes(self) -> int:
        """Bytes that have gone over the line between the two bridges, both ways."""
        links = json.loads(self._switch.ip("-json", "-statistics", "link", "show", "type", "veth"))
        ends = [link for link in links if link["ifname"].startswith(_TRUNK)]
        return sum(int(link["stats64"]["tx"]["bytes"]) for link in ends)

    def remove(self) -> None:
        """Remove all namespaces, with whatever still runs in them."""
        failures = []
        for netns in [*(port.netns for port in self.ports), self._switch]:
            if netns.path.exists():
                try:
                    netns.delete()
                except Failed as exc:
                    failures.append(str(exc))
        if failures:
            raise Failed("\n".join(failures))
