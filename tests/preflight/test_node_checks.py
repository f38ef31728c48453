from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from pathlib import Path

import httpx
import ifaddr
import pytest
import trio
from lab.rights import without_rights
from structlog.testing import capture_logs

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.catalog.service_definitions import ServiceMode, spegel_services
from spegel_consul.endpoints import dial_back
from spegel_consul.endpoints.check import Check, Status, fail, has_failed, ok, warn
from spegel_consul.endpoints.plain_app import PlainApp, answering, not_allowed
from spegel_consul.join.bootstrap_kind import BootstrapKind
from spegel_consul.preflight import interfaces, node_checks
from spegel_consul.preflight.consul_checks import ConsulUse, clock_check, rights_check
from spegel_consul.preflight.node_checks import address_check
from spegel_consul.preflight.subject import Subject
from spegel_consul.runtimes.containerd_sockets import MOVED, NAMESPACES, SocketSearch, find_socket, namespaces
from tests.consul.fakeconsul import FakeConsul


@pytest.mark.parametrize(
    ("off", "status"), [(0, Status.OK), (1.9, Status.OK), (-1.9, Status.OK), (4, Status.FAIL), (-4, Status.FAIL)]
)
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_clock(off: float, status: Status, fraction: float) -> None:
    now = 1_800_000_000 + fraction
    assert clock_check(formatdate(int(now), usegmt=True), now + off, now + off + 0.1).status is status


def judged(use: ConsulUse, *missing: str, node: str = "n1") -> Check:
    """The finding about a token that lacks the rights to these segments of resources."""
    rights = tuple(use.rights(node))
    return rights_check([f"{right.resource} {right.segment}" not in missing for right in rights], rights)


def test_rights() -> None:
    assert judged(ConsulUse()).status is Status.OK
    check = judged(ConsulUse(), "session n1", "node ")
    assert check.status is Status.FAIL
    assert "session:write, node:read" in check.says
    assert check.fix.splitlines() == [
        'session_prefix "" { policy = "write" }',
        'node_prefix "" { policy = "read" }',
    ]


@pytest.mark.parametrize("registers", [True, False])
def test_a_right_to_one_of_the_services_is_not_enough(registers: bool) -> None:
    access = "write" if registers else "read"
    check = judged(ConsulUse(registers=registers), "service spegel-router", "service spegel-metrics")
    assert check.status is Status.FAIL
    assert check.says == f"the token lacks service:{access}"
    assert check.fix == f'service_prefix "spegel" {{ policy = "{access}" }}'
    needs_leader = judged(ConsulUse(registers=registers), "service spegel-leader").status is Status.FAIL
    assert needs_leader is registers


def test_a_session_on_a_node_whose_name_is_not_told() -> None:
    check = judged(ConsulUse(), "session ", node="")
    assert (check.status, check.fix) == (Status.WARN, 'agent_prefix "" { policy = "read" }')
    assert judged(ConsulUse(), "session ", "node ", node="").status is Status.FAIL


@pytest.mark.parametrize(
    ("kinds", "mode", "needed"),
    [
        ("consul", "auto", "key:write session:write service:write node:read"),
        ("static consul", "external", "key:write session:write service:read node:read"),
        ("consul", "off", "key:write session:write"),
        ("consul catalog", "off", "key:write session:write service:read node:read"),
        ("catalog", "self", "service:write node:read"),
        ("catalog nomad-var", "external", "service:read node:read"),
        ("catalog", "off", "service:read node:read"),
    ],
)
def test_the_rights_that_kinds_of_bootstrap_need(kinds: str, mode: str, needed: str) -> None:
    use = ConsulUse.of([BootstrapKind(kind) for kind in kinds.split()], ServiceMode(mode), "spegel/leader")
    assert " ".join(dict.fromkeys(map(str, use.rights()))) == needed


async def test_the_right_to_the_leader_key_that_is_configured() -> None:
    """The agent allows all but what is asked about the key."""
    asked: list[dict[str, str]] = []

    async def agent(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while chunk := await stream.receive_some():
                received += chunk
                head, _, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                if b"\r\n\r\n" not in received or len(body) < int(length[1] if length else 0):
                    continue
                received, answer = b"", '"10.0.0.1:8300"'
                if b" /v1/internal/acl/authorize " in head:
                    asked.extend(json.loads(body))
                    answer = json.dumps([{**one, "Allow": one["Resource"] != "key"} for one in asked])
                elif b" /v1/agent/self " in head:
                    answer = '{"Config": {"NodeName": "n1", "Datacenter": "dc1"}}'
                await stream.send_all(f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n{answer}".encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, agent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        subject = Subject("192.0.2.1", 5000, consul=ConsulSettings(port=port), consul_use=ConsulUse("team/a/leader"))
        checks = {check.name: check for check in await node_checks.run(subject)}
        nursery.cancel_scope.cancel()
    assert {"Resource": "key", "Segment": "team/a/leader", "Access": "write"} in asked
    assert {"Resource": "session", "Segment": "n1", "Access": "write"} in asked
    assert "spegel/leader" not in str(asked)
    assert checks["acl"].status is Status.FAIL
    assert checks["acl"].fix == 'key "team/a/leader" { policy = "write" }'


def test_loopback_is_fatal_unless_it_was_asked_for() -> None:
    assert address_check("127.0.0.1", "").fatal
    assert address_check("::1", "").fatal
    assert address_check("127.0.0.1", "127.0.0.1").status is Status.WARN


def test_bridges_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docker0", "br-0f3a9c1b2d4e"):
        monkeypatch.setattr(node_checks, "interface_of", lambda address, name=name: name)
        check = address_check("172.17.0.1", "")
        assert check.fatal
        assert name in check.says
    monkeypatch.setattr(node_checks, "interface_of", lambda address: "eth0")
    monkeypatch.setattr(node_checks, "in_container", lambda: True)
    check = address_check("172.17.0.2", "")
    assert (check.status, check.fatal) == (Status.FAIL, False)
    assert 'network_mode = "host"' in check.fix
    assert address_check("10.0.0.7", "").status is Status.OK


@pytest.mark.parametrize(
    "name", ["br-lan", "br-ex", "br-0f3a", "br-0f3a9c1b2d4e5", "virbr0", "cni0", "nomad", "podman1"]
)
def test_a_bridge_that_may_be_the_way_out_is_no_more_than_a_warning(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(node_checks, "interface_of", lambda address: name)
    check = address_check("10.0.0.7", "")
    assert not check.fatal
    assert check.status is (Status.OK if name.startswith("br-") else Status.WARN)
    assert name in check.says


def test_the_interface_of_an_address() -> None:
    assert interfaces.interface_of("127.0.0.1") == "lo"
    assert interfaces.interface_of("192.0.2.1") is None
    assert interfaces.interface_of("2001:db8::1") is None


def test_a_second_address_of_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    ips = [ifaddr.IP(ip, 24, "eth0") for ip in ("192.0.2.7", "192.0.2.8", ("2001:db8::8", 0, 0))]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [ifaddr.Adapter("eth0", "eth0", ips, index=2)])
    assert interfaces.interface_of("192.0.2.7") == "eth0"
    assert interfaces.interface_of("192.0.2.8") == "eth0"
    assert interfaces.interface_of("2001:db8::8") == "eth0"
    assert interfaces.interface_of("192.0.2.9") is None


def test_what_a_check_looks_like() -> None:
    check = fail("name", "says", "one\ntwo")
    assert ["".join(line) for line in check.lines()] == ["fail  name: says", "      | one", "      | two"]
    assert check.as_dict() == {"name": "name", "status": "fail", "says": "says", "fix": "one\ntwo", "fatal": False}
    assert has_failed([ok("a", ""), check])
    assert not has_failed([ok("a", ""), warn("b", "")])


async def test_a_group_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(subject: Subject) -> list[Check]:
        raise RuntimeError("odd")

    monkeypatch.setattr(node_checks, "docker_checks", broken)
    checks = await node_checks.run(Subject("10.0.0.7", 5000))
    assert [check.name for check in checks] == ["address", "docker", "dial-back"]
    assert "odd" in checks[1].says


async def test_nobody_there(tmp_path: Path) -> None:
    subject = Subject(
        "10.0.0.7",
        5000,
        containerd_sock=tmp_path / "c.sock",
        containerd_config=tmp_path / "config.toml",
        containerd_hosts=tmp_path,
        docker_sock=tmp_path / "d.sock",
    )
    checks = {check.name: check for check in await node_checks.run(subject)}
    assert "does not exist" in checks["containerd"].says
    assert checks["config-path"].status is Status.WARN
    (tmp_path / "d.sock").touch()
    checks = {check.name: check for check in await node_checks.run(subject)}
    assert "Docker at" in checks["docker"].says


async def test_what_this_user_may_not_look_for_may_be_there(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0)
    with without_rights():
        assert find_socket([tmp_path / "hidden/c.sock"]) == hidden / "c.sock"
        subject = Subject(
            "10.0.0.7",
            5000,
            containerd_sock=hidden / "c.sock",
            containerd_config=hidden / "config.toml",
            containerd_hosts=tmp_path,
            docker_sock=hidden / "d.sock",
            kubelet=hidden / "kubelet",
        )
        checks = {check.name: check for check in await node_checks.run(subject)}
    for name in ("containerd", "containerd-config", "docker"):
        assert "permission" in checks[name].says.lower(), checks[name]


def test_sockets_and_namespaces(tmp_path: Path) -> None:
    first, dead, alive = (tmp_path / name for name in ("first", "dead", "alive"))
    assert find_socket([first, dead]) == first
    with ExitStack() as stack:
        for path in (dead, alive):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
            if path is alive:
                sock.listen()
        assert find_socket([first, dead, alive]) == alive
        assert find_socket([first, dead]) == dead
    assert namespaces(["auto"]) == NAMESPACES
    assert namespaces(["team", "moby", "team"]) == ("team", "moby")


def test_a_socket_is_looked_for_until_there_is_one(tmp_path: Path) -> None:
    usual, other = tmp_path / "usual", tmp_path / "other"
    search = SocketSearch([usual, other])
    assert search.look() == usual
    with socket.socket(socket.AF_UNIX) as late, socket.socket(socket.AF_UNIX) as later:
        late.bind(str(other))
        assert search.look() == other
        late.listen()
        assert search.look() == other
        later.bind(str(usual))
        later.listen()
        assert search.look() == other
        other.unlink()  # it restarts
        assert search.look() == other


def test_a_containerd_that_moves_is_found_again(tmp_path: Path) -> None:
    usual, other = tmp_path / "usual", tmp_path / "other"
    now = 0.0
    search = SocketSearch([usual, other], clock=lambda: now)
    with socket.socket(socket.AF_UNIX) as before, socket.socket(socket.AF_UNIX) as after:
        before.bind(str(other))
        before.listen()
        assert search.look() == other
        before.close()
        other.unlink()
        now = 100.0
        assert search.look() == other
        now += MOVED
        assert search.look() == other, "there is no better one"
        after.bind(str(usual))
        after.listen()
        with capture_logs() as logs:
            assert search.look() == usual
        assert [(entry["log_level"], entry["socket"]) for entry in logs] == [("warning", str(usual))]


def test_a_containerd_that_ran_beside_it_is_not_taken(tmp_path: Path) -> None:
    usual, beside = tmp_path / "usual", tmp_path / "beside"
    now = 0.0
    search = SocketSearch([usual, beside], clock=lambda: now)
    with (
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX) as back,
    ):
        for sock, path in ((first, usual), (other, beside)):
            sock.bind(str(path))
            sock.listen()
        assert search.look() == usual
        first.close()
        for now in (100.0, 100 + MOVED, 100 + 2 * MOVED, 5000.0):
            assert search.look() == usual, now
        usual.unlink()
        back.bind(str(usual))
        back.listen()
        assert search.look() == usual


def test_two_short_absences_are_no_move(tmp_path: Path) -> None:
    usual, other = tmp_path / "usual", tmp_path / "other"
    now = 0.0
    search = SocketSearch([usual, other], clock=lambda: now)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as later:
        first.bind(str(usual))
        first.listen()
        assert search.look() == usual
        first.close()
        now = 100.0
        assert search.look() == usual
        later.bind(str(other))
        later.listen()
        now = 86_500.0  # nobody looked meanwhile, because containerd was in use
        assert search.look() == usual
        now += MOVED
        assert search.look() == other


async def test_a_node_of_another_cluster_is_not_asked_to_dial_back(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters that share a Consul may be unable to reach each other."""
    consul = FakeConsul(nursery)
    ports = {"registry_port": 5000, "router_port": 5001, "metrics_port": 9090}
    for name, address, key in (("n2", "10.0.0.2", "prod/leader"), ("n3", "10.0.0.3", "staging/leader")):
        made = spegel_services(
            node=name, address=address, peer_id=name, router_addr="", version="1", **ports, leader_key=key
        )
        await consul.client(name).register_service(made.always[0].to_json())
    monkeypatch.setattr(node_checks, "ConsulClient", lambda _: consul.client("n1"))
    monkeypatch.setattr(dial_back, "ask", lambda peer, address, port: ok("dial-back", peer.host))
    subject = Subject("10.0.0.1", 5000, consul=ConsulSettings(), leader_key="staging/leader")
    assert await node_checks._dial_back(subject, (None,)) == [ok("dial-back", "10.0.0.3")]
    nursery.cancel_scope.cancel()


class TestDialBack:
    @pytest.fixture
    def app(self) -> PlainApp:
        app = PlainApp(answering(not_allowed))
        dial_back.add_to(app)
        return app

    async def answer(self, app: PlainApp, host: str, query: str) -> tuple[int, dict[str, object]]:
        transport = httpx.ASGITransport(app, client=(host, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1:5000") as client:
            answer = await client.get(f"/dial-back{query}")
        return answer.status_code, answer.json()

    @pytest.mark.parametrize(
        "query", ["", "?port=0", "?port=65536", "?port=x", "?port=-1", "?port=" + "9" * 5000, "?port=%C2%B2"]
    )
    async def test_a_port_that_is_none(self, app: PlainApp, query: str) -> None:
        status, document = await self.answer(app, "192.0.2.1", query)
        assert status == 400
        assert "?port=5000" in str(document["error"])

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
    async def test_nobody_is_dialled_on_this_machine(self, app: PlainApp, host: str) -> None:
        status, document = await self.answer(app, host, "?port=22&host=10.0.0.1")
        assert status == 400
        assert "another machine" in str(document["error"])

    async def test_only_the_asker_is_dialled(self, app: PlainApp, monkeypatch: pytest.MonkeyPatch) -> None:
        dialled = []

        async def dial(host: str, port: int) -> str | None:
            await trio.lowlevel.checkpoint()
            dialled.append((host, port))
            return None

        monkeypatch.setattr(dial_back, "_dial", dial)
        status, document = await self.answer(app, "::ffff:10.0.0.9", "?port=5000&host=10.0.0.1")
        assert (status, dialled) == (200, [("10.0.0.9", 5000)])
        assert document == {"address": "10.0.0.9", "port": 5000, "reached": True, "error": None}

    async def test_not_many_at_once(
        self, app: PlainApp, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
    ) -> None:
        async def dial(host: str, port: int) -> str | None:
            await trio.sleep(1)
            return "no"

        monkeypatch.setattr(dial_back, "_dial", dial)
        statuses: list[int] = []

        async def one() -> None:
            statuses.append((await self.answer(app, "10.0.0.9", "?port=5000"))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
        assert sorted(statuses) == [200] * 4 + [503] * 2
        assert (await self.answer(app, "10.0.0.9", "?port=5000"))[0] == 200
