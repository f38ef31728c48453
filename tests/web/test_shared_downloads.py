"""Who follows whom, as the API, the page and the command line show it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from web.crowd import LONG, NASTY, address, crowd, name_of
from web.shared_downloads import CLAIM, GROUP, HERE, LAYER_DIGEST, MANIFEST, MIB, at_work, bodies, body, follow
from web.shared_downloads import LAYER as SIZE

from spegel_consul.cli import cli
from spegel_consul.commands import sidecar_client
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.followers import LATE_AFTER
from spegel_consul.ring.dht.claim_reports import Verdict, What, Why
from spegel_consul.web import formatting
from spegel_consul.web.forest import trees
from spegel_consul.web.node_views import Node
from spegel_consul.web.web_app import build_app

ALONE = Verdict(What.ALONE)
HOSTILE = ["<script>alert(1)</script>", "[bold red]markup[/]", "\x1b[2J\x07terminal", "\u202egnp.exe"]


def peer(number: int) -> str:
    """The id of a member of the crowd."""
    return f"12D3KooW{number:044}"


def source(number: int) -> Verdict:
    return follow(peer(number), address(number))


async def page(node: Node) -> str:
    response = await build_app(node).test_client().get("/debug/web/")
    assert response.status_code == 200
    text = (await response.get_data()).decode()
    return text.partition('<section class="card" id="following"')[2].partition("</section>")[0]


def status(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command prints of a document that has come over the network."""
    answered = json.loads(json.dumps(document))
    monkeypatch.setattr(sidecar_client, "get", lambda *_: answered)
    return CliRunner().invoke(cli, ["status"], catch_exceptions=False).output


async def test_a_node_without_following_has_empty_lists() -> None:
    node = crowd(3)
    document = node.status()
    assert (document["following"], document["followers"]) == ([], [])
    assert (document["mirror"]["follow"], document["mirror"]["bytes_followed"]) == (False, 0)
    assert "--follow=on" in await page(node)


async def test_the_api_says_which_node_is_followed_and_how_far_this_one_is() -> None:
    node = crowd(9)
    async with at_work(node, source(3)):
        (found,) = node.status()["following"]
        since = found.pop("since")
        assert -60 < since - time.time() < 5
        assert found == {
            "image": "docker.io/library/app",
            "group": GROUP,
            "role": "follower",
            "working": True,
            "source": f"{address(3)}:5000",
            "source_node": name_of(3),
            "have": HERE,
            "size": SIZE + len(MANIFEST),
            "bytes_followed": 0,
            "left": None,
            "left_node": None,
            "left_why": None,
        }
        assert node.status()["mirror"]["follow"] is True


@pytest.mark.parametrize(("verdict", "role"), [(CLAIM, "claimer"), (source(3), "follower"), (ALONE, "alone")])
async def test_the_role_is_that_of_the_verdict(verdict: Verdict, role: str) -> None:
    node = crowd(9)
    async with at_work(node, verdict):
        (found,) = node.following()
        assert (found["role"], found["source"] is not None) == (role, role == "follower")


async def test_a_claimer_whose_runtime_downloads_nothing_is_not_shown_as_downloading() -> None:
    node = crowd(9)
    async with at_work(node, CLAIM):
        (document,) = node.following()
        assert document["working"]
        assert [each.text for each in trees([document], [])] == ["downloading from upstream, 41 of 64 MiB"]
        # the runtime has all of it, or has found it at a neighbour
        assert [each.doing for each in trees([{**document, "working": False}], [])] == ["nothing is downloading"]


async def test_the_reason_why_a_source_was_left_is_shown() -> None:
    node = crowd(9)
    async with at_work(node, source(3), source(4)) as active:
        body(active).lost(Why.CUT)
        await active.verdict()
        (found,) = node.following()
        assert (found["source_node"], found["left_node"], found["left_why"]) == (name_of(4), name_of(3), "cut")


async def test_the_api_says_who_follows_this_node() -> None:
    node = crowd(9)
    async with at_work(node, CLAIM), bodies(node, [(peer(4), 40 * MIB), ("unknown-peer-id", -1)]):
        first, second = node.status()["followers"]
        assert first == {
            "peer": peer(4),
            "peer_node": name_of(4),
            "group": GROUP,
            "reference": f"docker.io/library/app@{LAYER_DIGEST}",
            "kind": "blobs",
            "digest": LAYER_DIGEST,
            "sent": 40 * MIB,
            "total": SIZE,
            "lag": HERE - 40 * MIB,
            "behind": False,
        }
        assert (second["peer_node"], second["sent"], second["total"], second["lag"]) == (None, 0, None, 0)


async def test_the_page_draws_the_tree_of_an_image() -> None:
    node = crowd(9)
    async with at_work(node, source(3)), bodies(node, [(peer(4), 12 * MIB), (peer(4), 8 * MIB), (peer(5), -1)]):
        node.followers.behind(trio.current_time())
        node.followers.behind(trio.current_time() + 2 * LATE_AFTER)
        text = await page(node)
    assert f"following {name_of(3)}, 41 of 64 MiB" in text
    above, _, below = text.partition('<span class="node self">')
    assert name_of(3) in above
    assert name_of(4) in below
    assert name_of(5) in below
    assert "20 of 128 MiB, 62.0 MiB behind, 2 at once" in below
    assert "waits for the first byte" in below


async def test_the_page_and_the_command_say_how_much_came_from_nodes_still_downloading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = crowd(9)
    node.metrics.followed_bytes.inc(300 * MIB)
    response = await build_app(node).test_client().get("/debug/web/")
    assert "300 MiB from nodes still downloading" in (await response.get_data()).decode()
    document = node.status()
    assert document["mirror"]["bytes_followed"] == 300 * MIB
    assert "300 MiB came from nodes still downloading" in status(document, monkeypatch)


async def test_the_command_shows_both_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    node = crowd(30)
    async with at_work(node, source(3)), bodies(node, [(peer(number), MIB) for number in range(4, 30)]):
        lines = status(node.status(), monkeypatch).splitlines()
    at = lines.index(f"app: following {name_of(3)}, 41 of 64 MiB")
    assert lines[at + 1 :] == [
        *(f"  followed by {name_of(number)}: 1.0 of 64 MiB" for number in range(4, 9)),
        "  and by 21 more",
    ]


async def test_the_command_bounds_the_number_of_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    node = crowd(3)
    async with at_work(node, CLAIM):
        document = node.status()
    document["following"] = [{**document["following"][0], "group": f"sha256:{n:064}"} for n in range(20)]
    assert status(document, monkeypatch).splitlines()[-1] == "and 15 more downloads: see --json"


async def test_the_command_reads_a_node_that_knows_no_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    document = crowd(3).status()
    before = status(document, monkeypatch)
    for name in ("following", "followers"):
        del document[name]
    for name in ("follow", "bytes_followed"):
        del document["mirror"][name]
    assert status(document, monkeypatch) == before


async def test_a_group_that_only_has_followers_is_named_by_their_request() -> None:
    node = crowd(9)
    async with bodies(node, [(peer(4), MIB)]):
        (tree,) = trees(node.following(), node.being_followed())
    assert (tree.image, tree.role, tree.text) == ("docker.io/library/app", "", "sending the rest")
    assert [each.name for each in tree.followers] == [name_of(4)]


async def test_hostile_names_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    node = crowd(9)  # the members 1 and 2 have hostile names
    async with at_work(node, source(1)) as active, bodies(node, [(name, MIB) for name in HOSTILE] + [(peer(2), 1)]):
        active.claim.history.image = "docker.io/" + HOSTILE[0]
        active.claim.history.leave(Provider(peer(1), (address(1), 5000)), "slow")
        text, document = await page(node), node.status()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert NASTY not in text
    assert LONG in text, "as a title"
    shown = status(document, monkeypatch)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("count", "whole", "text"),
    [
        (41 * MIB, 64 * MIB, "41 of 64 MiB"),
        (0, 64 * MIB, "0 of 64 MiB"),
        (400_000, 5 * MIB, "0.4 of 5.0 MiB"),
        (7, 1023, "7 of 1023 B"),
        (1 << 30, 3 << 50, "0.0 of 3072 TiB"),
        (41 * MIB, None, "41.0 MiB"),
        (0, 0, "0 B"),
    ],
)
def test_a_part_has_the_unit_of_its_whole(count: int, whole: int | None, text: str) -> None:
    assert formatting.part(count, whole) == text
