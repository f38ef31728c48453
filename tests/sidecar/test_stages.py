# Nothing but a stop ends a stage: alone, with tasks that fail in chosen ways, in virtual time; and each stage of a
# whole sidecar, which fails once and is there again.

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from lab.certificates import Authority
from structlog.testing import capture_logs

from spegel_consul import cli
from spegel_consul.sidecar import lifecycle
from spegel_consul.sidecar.prepare import prepare
from spegel_consul.sidecar.settings import Settings
from spegel_consul.sidecar.stages import LONGEST_PAUSE, Stages, attempt
from tests.consul.fakeconsul import FakeConsul

Task = Callable[..., Awaitable[None]]


class Failing:
    """A task that starts, waits for ``seconds`` and then does ``end``, as often as it is run."""

    def __init__(self, end: Callable[[], None], seconds: float = 1.0) -> None:
        self.runs: list[float] = []
        self.running = False
        self._end, self._seconds = end, seconds

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.runs.append(trio.current_time())
        task_status.started()
        self.running = True
        try:
            await trio.sleep(self._seconds)
            self._end()
        finally:
            self.running = False


def raising(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


@pytest.mark.parametrize(
    "end",
    [
        raising(ValueError("odd")),
        raising(MemoryError()),
        raising(RecursionError()),
        raising(ExceptionGroup("", [ValueError("odd"), OSError("disk")])),
        raising(trio.TooSlowError()),
        lambda: None,  # returns
    ],
    ids=["ValueError", "MemoryError", "RecursionError", "group", "TooSlowError", "return"],
)
async def test_a_stage_that_fails_is_started_again(
    end: Callable[[], None], autojump_clock: trio.testing.MockClock
) -> None:
    task, other = Failing(end), Failing(end, seconds=1e9)
    with capture_logs() as said:
        async with trio.open_nursery() as nursery:
            stages = Stages(nursery)
            await stages.start("other", other.run)
            await stages.start("task", task.run)
            await trio.sleep(3600)
            assert other.running
            await stages.stop()
    failures = [event for event in said if event["event"] == "stage failed and is started again"]
    assert len(failures) >= 100
    assert {event["stage"] for event in failures} == {"task"}
    assert len(other.runs) == 1
    pauses = [later - earlier - 1.0 for earlier, later in zip(task.runs, task.runs[1:], strict=False)]
    assert max(pauses) <= LONGEST_PAUSE
    assert max(pauses[:2]) < 2.0 < max(pauses)  # soon again at first, less and less often then


async def test_a_stage_that_fails_before_it_has_started_ends_the_start() -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("odd")

    async def end(*, task_status: trio.TaskStatus[None]) -> None:
        return

    async with trio.open_nursery() as nursery:
        stages = Stages(nursery)
        with pytest.raises(ValueError, match="odd"):
            await stages.start("task", run)
        with pytest.raises(RuntimeError, match="ended before"):
            await stages.start("task", end)
        await stages.stop()


@pytest.mark.parametrize("gently", [False, True])
@pytest.mark.parametrize("when", ["running", "paused", "failing while it is stopped"])
async def test_a_stop_ends_it_at_once(gently: bool, when: str, autojump_clock: trio.testing.MockClock) -> None:
    asked = trio.Event() if gently else None
    runs: Counter[str] = Counter()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        runs["begun"] += 1
        task_status.started()
        if when == "paused":
            raise ValueError
        try:
            await (asked.wait() if asked is not None else trio.sleep_forever())
        finally:
            if when.startswith("failing"):
                raise ValueError("goodbye failed")

    with capture_logs() as said:
        async with trio.open_nursery() as nursery:
            stages = Stages(nursery)
            await stages.start("task", run, gently=asked)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            await stages.stop()
            assert trio.current_time() == before
    assert runs["begun"] == 1
    if when.startswith("failing"):
        assert any("goodbye failed" in str(event["exc_info"].args) + repr(event["exc_info"]) for event in said)


async def test_stages_stop_in_reverse_and_one_after_the_other() -> None:
    ended: list[str] = []

    def task(name: str) -> Task:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                ended.append(name)

        return run

    names = list("abc")
    async with trio.open_nursery() as nursery:
        stages = Stages(nursery)
        for name in names:
            await stages.start(name, task(name))
        await stages.stop()
    assert ended == names[::-1]


async def test_a_task_that_nothing_depends_on_may_fail() -> None:
    async def fails() -> None:
        raise ValueError("odd")

    with capture_logs() as said:
        await attempt("task", fails)
    assert [(event["event"], event["task"]) for event in said] == [("task failed", "task")]


# The stages of a sidecar

_HELLO = b"\x13/multistream/1.0.0\n"  # what a libp2p router says first
STAGES = [
    "store",
    "address",
    "ring",
    "announcer",
    "farewell",
    "credentials",
    "certificates",
    "idle connections",
    "registry",
    "following",
    "copies",
    "web",
    "heap",
    "loop lateness",
    "history",
    "registration",
    "catalog",
    "place",
    "coordinates",
    "election",
    "bootstrap",
    "keeper",
]


class Faults:
    """Has one run of a stage fail when it is told to."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self._strike: dict[str, trio.Event] = {}

    def strike(self, name: str) -> None:
        self._strike[name].set()

    def around(self, name: str, run: Task) -> Task:
        self._strike[name] = trio.Event()

        async def faulty(*, task_status: trio.TaskStatus[None]) -> None:
            self.runs[name] += 1
            async with trio.open_nursery() as nursery:
                if self.runs[name] == 1:
                    nursery.start_soon(self._fail, name)
                await run(task_status=task_status)
                nursery.cancel_scope.cancel()

        return faulty

    async def _fail(self, name: str) -> None:
        await self._strike[name].wait()
        raise RuntimeError("injected")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    taken: list[Settings] = []
    monkeypatch.setattr("trio.run", lambda function, settings: taken.append(settings))
    monkeypatch.setattr("spegel_consul.sidecar.watchdog.become_guarded", lambda silence: -1)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    cert, key = Authority.make(tmp_path).issue(tmp_path, "node", "127.0.0.1")
    (tmp_path / "passwords").write_text("name:password\n")
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    arguments = [f"--{name}-addr=127.0.0.1:0" for name in ("registry", "router", "metrics")]
    arguments += [f"--data-dir={tmp_path}/data", f"--layout-path={tmp_path}", "--skip-preflight"]
    arguments += [f"--tls-cert-file={cert}", f"--tls-key-file={key}", f"--basic-auth-file={tmp_path}/passwords"]
    arguments += ["--hang-timeout=0", "--bootstrap-kind=consul", "--consul-service=self"]
    cli.cli.main(["registry", *arguments], standalone_mode=False)
    monkeypatch.undo()
    return taken[0]


@pytest.mark.parametrize("stage", STAGES)
async def test_each_stage_of_a_sidecar_may_fail(
    stage: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults()

    class Struck(Stages):
        async def start(self, name: str, run: Any, *, gently: trio.Event | None = None) -> None:
            await super().start(name, faults.around(name, run), gently=gently)

    monkeypatch.setattr(lifecycle, "Stages", Struck)
    stop, signals = trio.open_memory_channel[int](1)
    trust = ssl._create_unverified_context()
    async with trio.open_nursery() as world:
        fake = FakeConsul(world)
        node = replace(prepare(settings), consul=fake.client("n"))
        # asked for before anything may close the sockets
        registry, web = node.registry_url, node.metrics_url

        async def healthy() -> bool:
            if fake.holder() is None or {"spegel", "spegel-router"} - {
                each["Service"] for each in fake.services.values()
            }:
                return False
            async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
                answers = [await client.get(f"{registry}/livez"), await client.get(f"{web}/readyz")]
            async with await trio.open_tcp_stream("127.0.0.1", node.router_port) as stream:
                await stream.send_all(_HELLO)
                with trio.fail_after(10):
                    hello = await stream.receive_some()
            return [answer.status_code for answer in answers] == [200, 200] and hello.startswith(_HELLO)

        with capture_logs() as said, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lifecycle._run, settings, node, signals)
                while not await until(healthy):
                    pass
                assert sorted(faults.runs) == sorted(STAGES)
                faults.strike(stage)
                while faults.runs[stage] < 2:
                    await trio.sleep(0.01)
                while not await until(healthy):
                    pass
                await stop.send(15)
        world.cancel_scope.cancel()
    failed = [(event["stage"], repr(event["exc_info"])) for event in said if event["event"].startswith("stage failed")]
    assert [name for name, _ in failed] == [stage]
    assert "injected" in failed[0][1]
    assert "stopping" in [event["event"] for event in said]


async def until(holds: Callable[[], Awaitable[bool]]) -> bool:
    try:
        if await holds():
            return True
    except (httpx.TransportError, OSError, trio.TooSlowError, trio.BrokenResourceError):
        pass
    await trio.sleep(0.02)
    return False
