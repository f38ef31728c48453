"""The client of Consul: the results and errors of its callers for good and bad answers."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from spegel_consul.consul.api import client as client_module
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    CheckNotPassing,
    ConsulError,
    ConsulTimeout,
    ConsulUnavailable,
    InvalidSession,
    InvalidSessionTTL,
    NoClusterLeader,
    NotFound,
    RateLimited,
    RequestRefused,
    ServerError,
    UnexpectedAnswer,
)
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.consul.api.token import TokenSource

Call = Callable[[ConsulClient], Awaitable[object]]

CALLS: dict[str, Call] = {
    "get": lambda c: c.kv_get("k"),
    "acquire": lambda c: c.kv_acquire("k", "s", b""),
    "release": lambda c: c.kv_release("k", "s", b""),
    "create": lambda c: c.session_create("n", ttl=15, lock_delay=1),
    "renew": lambda c: c.session_renew("s"),
    "register": lambda c: c.register_service({}),
    "services": lambda c: c.agent_services(),
    "health": lambda c: c.health_service("spegel"),
    "agent": lambda c: c.agent_self(),
    "coordinates": lambda c: c.coordinates(),
    "leader": lambda c: c.status_leader(),
    "pass": lambda c: c.check_pass("c"),
}


def answering(answer: httpx.Response, seen: list[httpx.Request] | None = None, **settings: object) -> ConsulClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return answer

    return ConsulClient(ConsulSettings(**settings), transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_404_is_never_an_answer(call: Call) -> None:
    async with answering(httpx.Response(404, text="<html>")) as client:
        with pytest.raises(NotFound):
            await call(client)


@pytest.mark.parametrize("name", CALLS)
async def test_html_is_never_an_answer(name: str) -> None:
    async with answering(httpx.Response(200, text="<html>", headers={"X-Consul-Index": "1"})) as client:
        with pytest.raises(UnexpectedAnswer):
            await CALLS[name](client)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("register", "pass")])
@pytest.mark.parametrize("body", [7, [7], {"a": 7}, [{"a": 7}], None])
async def test_wrong_shapes_are_never_answers(name: str, body: object) -> None:
    async with answering(httpx.Response(200, json=body, headers={"X-Consul-Index": "1"})) as client:
        with pytest.raises(UnexpectedAnswer):
            await CALLS[name](client)


@pytest.mark.parametrize("name", ["acquire", "release"])
async def test_a_404_with_an_index_is_not_a_lock(name: str) -> None:
    async with answering(httpx.Response(404, headers={"X-Consul-Index": "5"})) as client:
        with pytest.raises(UnexpectedAnswer):
            await CALLS[name](client)


async def test_a_missing_key_has_an_index() -> None:
    async with answering(httpx.Response(404, headers={"X-Consul-Index": "5"})) as client:
        assert await client.kv_get("k") == (5, None)


async def test_a_missing_index_is_no_entry() -> None:
    async with answering(httpx.Response(200, json=[])) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.kv_get("k")
        assert await client.health_service("spegel") == (0, ())


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "Client sent an HTTP request to an HTTPS server.", RequestRefused),
        (400, "Invalid Session TTL '1', must be between [10s=24h0m0s]", InvalidSessionTTL),
        (401, "ACL support disabled", AccessDenied),
        (403, "Permission denied", AccessDenied),
        (403, "ACL not found", AccessDenied),
        (405, "method GET not allowed", RequestRefused),
        (429, "Your IP is issuing too many concurrent connections", RateLimited),
        (302, "", UnexpectedAnswer),
        (500, "No cluster leader", NoClusterLeader),
        (500, "leadership lost while committing log", NoClusterLeader),
        (500, "No known Consul servers", NoClusterLeader),
        (500, 'rpc error making call: invalid session "x"', InvalidSession),
        (500, "Missing check 'a' registration", CheckNotPassing),
        (500, 'Unknown service {"spegel-leader:n1" {}}', NotFound),
        (500, "Check 'a' is in critical state", CheckNotPassing),
        (500, "rpc error making call: Permission denied", AccessDenied),
        (500, "rpc error making call: EOF", ServerError),
        (503, "", ServerError),
    ],
)
async def test_statuses(status: int, text: str, kind: type[ConsulError]) -> None:
    async with answering(httpx.Response(status, text=text)) as client:
        with pytest.raises(ConsulError) as caught:
            await client.kv_acquire("k", "s", b"")
        assert type(caught.value) is kind
        assert str(caught.value).startswith(str(status))


async def test_the_minimum_ttl_is_read() -> None:
    text = "Invalid Session TTL '9000000000', must be between [1m30s=24h0m0s]"
    async with answering(httpx.Response(500, text=text)) as client:
        with pytest.raises(InvalidSessionTTL) as caught:
            await client.session_create("n", ttl=9, lock_delay=0)
        assert (caught.value.shortest, caught.value.longest) == (90, 86400)
        assert [caught.value.nearest(ttl) for ttl in (9, 100, 90000)] == [90, 100, 86400]


async def test_long_error_texts_become_one_line() -> None:
    async with answering(httpx.Response(502, text="<html>\n" + "x" * 5000)) as client:
        with pytest.raises(ServerError) as caught:
            await client.status_leader()
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


async def test_the_cause_of_a_failed_connection_is_told() -> None:
    async with ConsulClient(ConsulSettings(port=1)) as client:
        with pytest.raises(ConsulUnavailable, match="refused"):
            await client.status_leader()


async def test_time_limits(autojump_clock: trio.testing.MockClock) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    async def lasts(call: Awaitable[object]) -> float:
        began = trio.current_time()
        with pytest.raises(ConsulTimeout):
            await call
        return trio.current_time() - began

    async with ConsulClient(ConsulSettings(), transport=httpx.MockTransport(silent)) as client:
        assert await lasts(client.kv_get("k")) == 10 + 3
        assert await lasts(client.kv_get("k", 5, 60)) == 60 + 60 / 16 + 2 + 3
        assert await lasts(client.session_renew("s", within=5)) == 5 + 3


async def test_requests() -> None:
    seen: list[httpx.Request] = []
    async with answering(
        httpx.Response(200, json=True),
        seen,
        token="secret",
        namespace="team",
        partition="p",
        path_prefix="/consul",
        basic_auth=("a", "b"),
    ) as client:
        await client.kv_acquire("spegel/leader", "s", "✓".encode(), 7)
    [request] = seen
    assert request.url.path == "/consul/v1/kv/spegel/leader"
    assert dict(request.url.params) == {"flags": "7", "acquire": "s", "ns": "team", "partition": "p"}
    assert request.headers["X-Consul-Token"] == "secret"
    assert request.headers["Authorization"].startswith("Basic ")
    assert request.content.decode() == "✓"


async def test_a_session_bound_to_a_check_keeps_the_nodes_own() -> None:
    seen: list[httpx.Request] = []
    async with answering(httpx.Response(200, json={"ID": "s1"}), seen) as client:
        assert await client.session_create("n", ttl=15, lock_delay=0, service_checks=("c",)) == "s1"
    assert httpx.Response(200, content=seen[0].content).json() == {
        "Name": "n",
        "TTL": "15000ms",
        "LockDelay": "0s",
        "Behavior": "release",
        "NodeChecks": ["serfHealth"],
        "ServiceChecks": [{"ID": "c"}],
    }


async def test_the_environment_of_the_process_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "unix:///elsewhere")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    seen: list[httpx.Request] = []
    async with answering(httpx.Response(200, json="1:2"), seen, token="mine") as client:
        await client.status_leader()
    assert str(seen[0].url) == "http://127.0.0.1:8500/v1/status/leader"
    assert seen[0].headers["X-Consul-Token"] == "mine"


async def test_token_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = TokenSource("fixed", str(path))
    assert await source.current() == "fixed"
    path.write_text("one\n")
    assert await source.current() == "one"
    path.write_text("two-longer\n")
    assert await source.current() == "two-longer"
    path.write_text("")
    assert await source.current() == "two-longer"  # being written
    path.write_bytes(b"\xff")
    assert await source.current() == "two-longer"
    path.unlink()
    assert await source.current() == "two-longer"
    assert source.problem == f"CONSUL_HTTP_TOKEN_FILE: {path}: No such file or directory"
    assert await TokenSource().current() is None


async def test_a_token_from_the_environment_is_stripped_and_checked() -> None:
    assert await TokenSource(" SECRET-1\n").current() == "SECRET-1"
    for token in ("SECRET 1", "SECRET\n1", "SECR\u00c9T", "SECRET\x00"):
        source = TokenSource(token)
        assert await source.current() is None
        assert "printable ASCII" in source.problem
        assert "SECR" not in source.problem
        async with answering(httpx.Response(403, text="Permission denied"), token=token) as client:
            with pytest.raises(AccessDenied, match="printable ASCII") as caught:
                await client.kv_get("k")
            assert "SECR" not in str(caught.value)
    assert TokenSource(" ").problem is None


async def test_a_header_that_cannot_be_sent_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx refuses the header only once it has connected."""

    async def current(self: TokenSource) -> str:
        return "SECRET\n1"

    monkeypatch.setattr(TokenSource, "current", current)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: stream.aclose(), 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        async with ConsulClient(ConsulSettings(port=port)) as client:
            with pytest.raises(ConsulUnavailable, match="a header that HTTP does not allow") as caught:
                await client.kv_get("k")
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
        nursery.cancel_scope.cancel()


async def test_a_token_file_with_a_bom_or_with_other_than_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xef\xbb\xbfone\r\n")
    source = TokenSource(None, str(path))
    assert (await source.current(), source.problem) == ("one", None)
    path.write_text("tok\u00e9n", "utf-8")
    for _ in range(2):  # it stays known
        assert await source.current() == "one"
        assert str(path) in source.problem
        assert "printable ASCII" in source.problem
    path.write_text("three")
    assert (await source.current(), source.problem) == ("three", None)


@pytest.mark.parametrize("fault", [UnicodeEncodeError("ascii", "x", 0, 1, "no"), ExceptionGroup("", [OSError("no")])])
async def test_nothing_but_consul_errors_leaves_the_client(fault: Exception) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise fault

    async with ConsulClient(ConsulSettings(), transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(ConsulUnavailable, match="no"):
            await client.kv_get("k")


async def test_a_client_that_was_closed_is_an_agent_that_is_away() -> None:
    async with answering(httpx.Response(200, json="1:2")) as client:
        pass
    with pytest.raises(ConsulUnavailable, match="closed"):
        await client.status_leader()


async def test_an_answer_that_is_too_deep_is_none_of_consuls() -> None:
    async with answering(httpx.Response(200, text="[" * 200_000)) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.status_leader()


@pytest.mark.parametrize(("count", "in_a_thread"), [(10, False), (1000, True)])
async def test_a_large_catalog_is_decoded_in_a_thread(
    count: int, in_a_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, threads = client_module._instance, set()

    def watched(row: dict[str, object]) -> object:
        threads.add(threading.current_thread())
        return instance(row)

    monkeypatch.setattr(client_module, "_instance", watched)
    rows = [
        {"Node": {"Node": f"n{n}", "Address": "10.0.0.1"}, "Service": {"ID": f"s{n}", "Service": "s", "Meta": {}}}
        for n in range(count)
    ]
    for row in rows:
        row["Node"]["Meta"] = {"filler": "x" * 300}
    async with answering(httpx.Response(200, json=rows, headers={"X-Consul-Index": "7"})) as client:
        index, found = await client.health_service("s")
    assert (index, len(found)) == (7, count)
    assert (threads == {threading.main_thread()}) is not in_a_thread
    async with answering(httpx.Response(200, json=[*rows, 7], headers={"X-Consul-Index": "7"})) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.health_service("s")


async def test_the_coordinates_of_thousands_of_nodes_are_an_answer() -> None:
    vector = [0.0123456789012345678 + n / 7 for n in range(8)]
    rows = [
        {
            "Node": f"worker-{number:05}.dc1.example.com",
            "Segment": "",
            "Partition": "default",
            "Coord": {"Vec": vector, "Error": 0.1234567890123, "Adjustment": -0.00012345678, "Height": 0.00098765432},
        }
        for number in range(4000)
    ]
    async with answering(httpx.Response(200, json=rows)) as client:
        assert len(await client.coordinates()) == 4000


async def test_a_denial_tells_of_a_token_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "token"
    async with answering(httpx.Response(403, text="Permission denied"), token_file=str(path)) as client:
        with pytest.raises(AccessDenied) as caught:
            await client.kv_get("k")
        assert str(caught.value) == (
            f"403 Permission denied (CONSUL_HTTP_TOKEN_FILE: {path}: No such file or directory)"
        )


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_403_on_each_endpoint(call: Call) -> None:
    async with answering(httpx.Response(403, text="Permission denied")) as client:
        with pytest.raises(AccessDenied, match="403 Permission denied"):
            await call(client)


async def test_a_host_name_that_does_not_resolve() -> None:
    async with ConsulClient(ConsulSettings(host="consul.invalid")) as client:
        with trio.fail_after(10), pytest.raises(ConsulUnavailable) as caught:
            await client.status_leader()
        assert str(caught.value).startswith("http://consul.invalid:8500: ")
        assert "\n" not in str(caught.value)
