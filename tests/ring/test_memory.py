import itertools

import pytest
import trio
from conformance.router import RouterSuite
from fakes.memory_router import MemoryRing, MemoryRouter

from spegel_consul.ring import Router


class MemoryRig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ring = MemoryRing()
        self._ports = itertools.count(5000)
        self._registries: dict[str | None, tuple[str, int]] = {}
        self._scopes: dict[str | None, trio.CancelScope] = {}

    async def node(self) -> Router:
        registry = ("127.0.0.1", next(self._ports))
        router = MemoryRouter(self._ring, registry=registry)
        scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await router.run(task_status=task_status)

        await self._nursery.start(run)
        self._registries[router.me.id], self._scopes[router.me.id] = registry, scope
        return router

    async def kill(self, router: Router) -> None:
        self._scopes[router.me.id].cancel()
        await trio.testing.wait_all_tasks_blocked()

    def registry(self, router: Router) -> tuple[str, int]:
        return self._registries[router.me.id]


@pytest.fixture
async def rig(nursery: trio.Nursery) -> MemoryRig:
    return MemoryRig(nursery)


class TestMemoryRouter(RouterSuite):
    pass
