"""The plain answers, and an application that is imported when it is asked first, as ASGI applications."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from spegel_consul.endpoints.late_app import LateApp
from spegel_consul.endpoints.plain_app import Answer, PlainApp, Question, answering, not_allowed, plain


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://10.0.0.1")


async def echo(question: Question) -> Answer:
    return plain(200, f"{question.method} {question.path} {question.args} {question.headers.get('x-one')}")


async def fails(_: Question) -> Answer:
    raise ValueError("odd")


@pytest.fixture
def app() -> PlainApp:
    app = PlainApp(answering(echo))
    app.add("/fails", fails)
    app.add("/one", echo)
    return app


async def test_the_first_value_of_a_name_counts(app: PlainApp) -> None:
    async with client(app) as asker:
        found = await asker.get("/one?a=1&a=2&b=", headers=[("X-One", "1"), ("x-one", "2")])
    assert found.text == "GET /one {'b': '', 'a': '1'} 1\n"


async def test_head_has_the_length_and_no_body(app: PlainApp) -> None:
    async with client(app) as asker:
        found = await asker.head("/one")
    assert (found.status_code, found.content) == (200, b"")
    assert int(found.headers["content-length"]) == len("HEAD /one {} None\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_of_a_known_path_are_refused(app: PlainApp, method: str) -> None:
    async with client(app) as asker:
        found = await asker.request(method, "/one")
        assert (found.status_code, found.headers["allow"]) == (405, "GET, HEAD")
        assert (await asker.request(method, "/two")).text.startswith(f"{method} /two"), "passed on"


async def test_a_failure_is_logged_and_tells_the_client_nothing(app: PlainApp) -> None:
    with capture_logs() as said:
        async with client(app) as asker:
            found = await asker.get("/fails")
    assert (found.status_code, found.text) == (500, "internal error; the node's log has the details\n")
    assert [event["event"] for event in said] == ["request failed"]


async def test_requests_wait_for_one_import_and_the_loop_goes_on() -> None:
    go_on, loads = threading.Event(), []

    def load() -> Any:
        loads.append(threading.get_ident())
        assert go_on.wait(60)
        return lambda: answering(echo)

    late, answers = PlainApp(LateApp(load), not_allowed), []
    late.add("/one", echo)

    async def ask(asker: httpx.AsyncClient, path: str) -> None:
        answers.append((await asker.get(path)).text.split()[1])

    async with client(late) as asker, trio.open_nursery() as nursery:
        nursery.start_soon(ask, asker, "/two")
        nursery.start_soon(ask, asker, "/three")
        while not loads:
            await trio.lowlevel.checkpoint()
        await ask(asker, "/one")
        assert answers == ["/one"]
        go_on.set()
    assert sorted(answers) == ["/one", "/three", "/two"]
    assert len(loads) == 1
    assert loads[0] != threading.get_ident()


async def test_after_a_failed_import_the_next_request_tries_again() -> None:
    tries = []

    def load() -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("the disk is gone")
        return lambda: answering(echo)

    async with client(LateApp(load)) as asker:
        with pytest.raises(ImportError):
            await asker.get("/two")
        assert (await asker.get("/two")).status_code == 200


async def test_an_application_that_comes_late_has_a_start_up_and_a_nursery(nursery: trio.Nursery) -> None:
    from quart_trio import QuartTrio  # here, because the other applications need none of it

    pages, ended = QuartTrio("pages"), trio.Event()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    @pages.get("/two")
    async def two() -> str:
        pages.nursery.start_soon(work)
        return "two"

    @pages.get("/fails")
    async def fails() -> str:
        async def fail() -> None:
            raise ValueError("one task")

        pages.nursery.start_soon(fail)
        return "fails"

    app, events = PlainApp(LateApp(lambda: lambda: pages)), trio.open_memory_channel[Any](1)
    said: list[str] = []

    async def send(event: Any) -> None:
        said.append(event["type"])

    async with trio.open_nursery() as serving:
        serving.start_soon(app, {"type": "lifespan"}, events[1].receive, send)
        await events[0].send({"type": "lifespan.startup"})
        async with client(app) as asker:
            for path in ("/two", "/fails", "/two"):
                assert (await asker.get(path)).text == path[1:]
                await trio.testing.wait_all_tasks_blocked()
        assert ended.is_set()
        await events[0].send({"type": "lifespan.shutdown"})
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
