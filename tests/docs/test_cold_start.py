"""docs/cold-start.md names the fields, roles, reasons and limits that the code has."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lab.documents import ROOT
from web.crowd import crowd
from web.shared_downloads import CLAIM, at_work, bodies

from spegel_consul.commands.registry import registry
from spegel_consul.registry.mirror import followers, held_bodies
from spegel_consul.registry.mirror.following import follows, group_claim, group_history
from spegel_consul.registry.mirror.own_requests import SHOWN_FOR
from spegel_consul.registry.mirror.questions import source_search
from spegel_consul.ring.dht import claim_entry, claim_forest
from spegel_consul.ring.dht.claim_reports import Why
from spegel_consul.web.node_views import Document

PAGE = (ROOT / "docs/cold-start.md").read_text()
LISTS = dict(re.findall(r"^\| `(following|followers)` \| (.*) \|$", PAGE, re.M))
OF_ENDS = {group_history.COMPLETE, group_history.IDLE}
REASONS = {value for name, value in vars(group_history).items() if name.isupper() and isinstance(value, str)}


async def documents() -> Document:
    node = crowd(3)
    async with at_work(node, CLAIM), bodies(node, [("peer", 1)]):
        return node.status()


@pytest.mark.parametrize("name", ["following", "followers"])
async def test_the_fields_of_the_lists_are_those_of_the_api(name: str) -> None:
    (entry,) = (await documents())[name]
    named = set(re.findall(r"`([a-z_]+)`", LISTS[name]))
    assert named == set(entry) - {"reference", "kind"}


def test_the_reasons_are_all_there_are() -> None:
    rows = re.findall(r"^\| ((?:`[a-z ]+`(?:, )?)+) \|", PAGE.partition("`left_why` | what happened")[2], re.M)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    # a source that grows is never slow to its follower
    failures = {why.name.lower() for why in Why} - {"none", "slow"}
    assert named == failures | REASONS - OF_ENDS


def test_the_ends_of_a_follow_are_all_named() -> None:
    text = PAGE.partition("(`follow ended`")[2].partition(")")[0]
    assert set(re.findall(r"`([^`]+)`", text)) == REASONS - {group_history.MOVED}


LIMITS: list[tuple[Any, str]] = [
    (followers.MOST, "sends to {} followed requests"),
    (follows.MOST, "at work on {} images"),
    (claim_forest.CHAIN, "sends to a second one ({})"),
    (group_claim.CLAIM_WITHIN, "up to {} s for a keeper"),
    (source_search.FIRST_BYTE, "up to {} s for a source's first byte"),
    (followers.WAIT, "the source waits up to {} s"),
    (source_search.SILENT, "sends not even those for {} s hangs"),
    (held_bodies.GROWING_STALL, "sends nothing for {} s"),
    (claim_entry.SLOW_CLAIMER / (1 << 20), "gets less than {} MiB/s"),
    (claim_entry.KEEPS_UP / (1 << 20), "lags more than {} MiB"),
    (followers.LAG / (1 << 20), "lags more than {} MiB"),
]


@pytest.mark.parametrize(("value", "sentence"), LIMITS, ids=[sentence for _, sentence in LIMITS])
def test_the_limits_are_those_of_the_code(value: float, sentence: str) -> None:
    assert sentence.format(f"{value:g}") in " ".join(PAGE.split())


def test_the_time_in_which_a_download_is_shown() -> None:
    assert SHOWN_FOR == 600
    assert "in the last ten minutes" in " ".join(PAGE.split())


def test_each_job_has_the_variable_and_it_is_on() -> None:
    jobs = sorted((ROOT / "jobs").glob("spegel*.nomad.hcl"))
    assert len(jobs) == 5
    for path in jobs:
        text = path.read_text()
        assert re.search(r'variable "follow" \{\s+type\s+= string\s+default\s+= "on"', text), path.name
        assert '"--follow=${var.follow}"' in text, path.name


def test_the_length_of_a_chain_is_the_same_for_the_command_and_the_ring() -> None:
    assert {each.name: each.default for each in registry.params}["follow_chain"] == claim_forest.CHAIN
