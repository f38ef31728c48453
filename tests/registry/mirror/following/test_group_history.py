"""What people are told about the work on a group: one beginning and one end for each follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.path import parse_content_path
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.following import group_claim
from spegel_consul.registry.mirror.following.group_history import (
    COMPLETE,
    IDLE,
    TAKEOVER,
    EndedFollow,
    GroupHistory,
    LeftSource,
)

from ...image import LAYER
from .following_node import CONFIG, GROUP, MANIFEST, OTHER, Pull, sources, start, until
from .growing_source import CLAIM, GrowingSource, ScriptedKeeper, follow

__all__ = ["sources"]  # a fixture

ONE, TWO = Provider("one", ("10.0.0.1", 5000)), Provider("two", ("10.0.0.2", 5000))
IMAGE = {"image": "docker.io/library/app", "group": GROUP}


def test_a_follow_begins_once_and_ends_once() -> None:
    history = GroupHistory(10.0)
    assert history.followed(ONE, 11.0)
    assert not history.followed(ONE, 12.0)
    history.took(70, 13.0)
    assert not history.followed(TWO, 14.0)
    history.took(30, 15.5)
    assert history.take_ended() is None
    history.end(COMPLETE)
    history.end(IDLE)
    assert history.take_ended() == EndedFollow(TWO, 2, 100, 4.5, COMPLETE)
    assert history.take_ended() is None


def test_a_second_follow_counts_its_own_bytes() -> None:
    history = GroupHistory(10.0)
    for count in (70, 7):
        assert history.followed(ONE, 11.0)
        history.took(count, 12.0)
        history.end(TAKEOVER)
        ended = history.take_ended()
        assert ended is not None
        assert ended.received == count
    assert history.received == 77


def test_without_a_body_there_is_no_end() -> None:
    history = GroupHistory(10.0)
    history.end(IDLE)
    assert history.take_ended() is None


def test_a_follow_that_goes_on_before_its_end_is_told_has_not_ended() -> None:
    history = GroupHistory(10.0)
    history.followed(ONE, 11.0)
    history.end(TAKEOVER)
    assert not history.followed(TWO, 12.0)
    assert history.take_ended() is None


def test_the_first_full_name_is_kept() -> None:
    history = GroupHistory(10.0)
    history.name(None, "library/app")
    assert history.image == ""
    history.name("docker.io", "library/app")
    history.name("ghcr.io", "other")
    assert history.image == "docker.io/library/app"


def told(logs: list[Any], *levels: str) -> list[dict[str, Any]]:
    """The lines about a group."""
    events = ("follow began", "follow ended", "download taken over", "download claimed")
    return [each for each in logs if each["event"] in events and each["log_level"] in levels]


def at(source: GrowingSource) -> str:
    return f"127.0.0.1:{source.address[1]}"


async def pull_both(asker: Any, nursery: trio.Nursery) -> None:
    """Pull the two layers of the image."""
    for content in (LAYER, OTHER):
        pull = Pull(asker, content)
        nursery.start_soon(pull.run)
        await pull.done.wait()


async def test_a_group_of_two_layers_makes_two_lines(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    with capture_logs() as logs:
        await pull_both(asker, nursery)
        for content in (LAYER, OTHER, CONFIG, MANIFEST):
            asker.store.add_content(content)
        await until(lambda: len(told(logs, "info")) == 2)
    began, ended = told(logs, "info")
    assert began == {"event": "follow began", "log_level": "info", **IMAGE, "source": at(sources[0])}
    assert 0 <= ended.pop("seconds") < 10
    assert ended == {
        "event": "follow ended",
        "log_level": "info",
        **IMAGE,
        "source": at(sources[0]),
        "sources": 1,
        "bytes": len(LAYER) + len(OTHER),
        "reason": "complete",
    }


async def test_a_follow_of_which_nothing_more_is_asked_ends_idle(
    start_node: Any,
    sources: list[GrowingSource],
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_claim, "LINGER", 0.5)
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    with capture_logs() as logs:
        await pull_both(asker, nursery)
        for content in (LAYER, OTHER):
            asker.store.add_content(content)
        await until(lambda: not asker.mirror.peers.follows.active)
    assert [each.get("reason") for each in told(logs, "info")] == [None, "idle"]


async def test_a_takeover_is_told_and_ends_the_follow_with_all_of_its_bytes(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]), after_loss=CLAIM)
    sources[0].shown = 400_000
    pull = Pull(asker, LAYER)
    with capture_logs() as logs:
        nursery.start_soon(pull.run)
        await until(lambda: pull.received)
        sources[0].dies = True
        await pull.done.wait()
        await until(lambda: len(told(logs, "info")) == 3)
    began, taken, ended = told(logs, "info")
    assert (began["event"], taken["event"], ended["event"]) == ("follow began", "download taken over", "follow ended")
    assert taken["left"] in ("cut", "unreachable")
    assert (ended["reason"], ended["bytes"]) == ("takeover", asker.metric("spegel_followed_bytes_total"))
    assert not [each for each in logs if each["event"] == "transfer resumed" and each["log_level"] == "info"]


async def test_the_first_claimer_is_told_at_debug_only(start_node: Any, tmp_path: Path, nursery: trio.Nursery) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    with capture_logs() as logs:
        pull = Pull(asker, LAYER)
        nursery.start_soon(pull.run)
        await pull.done.wait()
    assert told(logs, "info", "warning") == []
    assert [each["event"] for each in told(logs, "debug")] == ["download claimed"]


async def test_a_source_that_the_keeper_replaced_was_left_because_of_that(
    start_node: Any, sources: list[GrowingSource], tmp_path: Path, nursery: trio.Nursery
) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(follow(sources[0]))
    sources[0].shown = 400_000
    pull = Pull(asker, LAYER)
    nursery.start_soon(pull.run)
    await until(lambda: pull.received)
    (active,) = asker.mirror.peers.follows.active
    asker.router.keeper = ScriptedKeeper(follow(sources[1]))
    await pull.done.wait()
    assert pull.received == LAYER
    assert active.claim.history.left == LeftSource(sources[0].provider, "moved")


@pytest.mark.parametrize("registry", ["docker.io", ""])
async def test_only_a_request_with_a_registry_names_the_image(start_node: Any, tmp_path: Path, registry: str) -> None:
    asker = await start(start_node, tmp_path)
    asker.router.keeper = ScriptedKeeper(CLAIM)
    query = f"ns={registry}" if registry else ""
    active = await asker.mirror.peers.follows.begin(
        parse_content_path(f"/v2/library/app/blobs/{Digest.of(LAYER)}", query)
    )
    assert active.claim.history.image == ("docker.io/library/app" if registry else "")
