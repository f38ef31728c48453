"""How much others can make a node ask of its ring at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from web.test_node import node

from spegel_consul.web import api
from spegel_consul.web.queries import image_locations
from spegel_consul.web.queries.image_locations import ImageLocations
from spegel_consul.web.web_app import build_app


class Slow:
    """Lookups that take a while, counted."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        await trio.sleep(0.3)
        return {"providers": [{"node": "n2", "registry": "10.0.0.2:5000"}]}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    made = Slow()
    monkeypatch.setattr(api, "lookup", made)
    monkeypatch.setattr(image_locations, "lookup", made)
    return made


async def test_lookups_beyond_the_limit_are_refused_at_once_and_later_ones_are_not(slow: Slow) -> None:
    client = build_app(node()).test_client()
    answers: list[int] = []

    async def ask() -> None:
        response = await client.get("/api/lookup?key=docker.io/library/app:v1")
        answers.append(response.status_code)
        if response.status_code == 429:
            assert "try again" in json.loads(await response.get_data())["error"]

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert sorted(answers) == [200] * 8 + [429] * 12
        assert slow.asked == 8
        await ask()
    assert answers[-1] == 200


async def test_those_who_look_at_the_page_together_share_what_is_asked(slow: Slow, autojump_clock: MockClock) -> None:
    shared = ImageLocations(node())
    seen: list[dict[str, list[str]]] = []

    async def look() -> None:
        seen.append(await shared.of(["a", "b"], {}))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(look)
    assert slow.asked == 2
    assert seen == [{"a": ["n2"], "b": ["n2"]}] * 10
    await trio.sleep(image_locations.FRESH + 1)
    await look()
    assert slow.asked == 4
