# Nobody has the image when the pulls begin, so without the product's help each node downloads it from the upstream.
# What is asserted is what left the upstream, because that does not depend on how busy the machine is.

"""Nodes that pull one new image at the same time have the upstream send it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from lab import thorough
from lab.cold_start import ColdStart, Outcome
from lab.image import MIB, Image

pytestmark = pytest.mark.real

LAYERS = [10 * MIB, 9 * MIB, 6 * MIB]
FLAGS = {"follow": "on", "verify_first": "8MiB"}  # so the first two layers pass as they grow, and the last one is held
COPIES = 1.2
UPSTREAM = 100  # Mbit/s: 2 s for one copy
ALL_RUNTIMES = ["1.7", "2.1", "2.1-parallel", "docker28"]
RUNTIMES = ALL_RUNTIMES if thorough.ALL else ["1.7", "2.1-parallel"]  # `make faults` takes all


@pytest.fixture(scope="module", params=RUNTIMES)
def cold(request: pytest.FixtureRequest) -> Iterator[ColdStart]:
    with ColdStart([request.param] * 3, upstream_mbit=UPSTREAM) as cold:
        cold.start_sidecars(**FLAGS)
        yield cold


@pytest.mark.parametrize("apart", [0.0, 0.5], ids=["together", "apart"])
def test_one_copy_leaves_the_upstream(cold: ColdStart, apart: float) -> None:
    image = cold.image(LAYERS)
    outcome = cold.pull(image, apart=apart)
    assert_one_copy(outcome, image)
    if "2.1-parallel" not in cold.runtimes:  # that one asks for pieces
        assert asked_upstream(outcome, image) == dict.fromkeys(new_blobs(image), 1)
    assert_no_traceback(cold)


def test_more_layers_than_slots_of_containerd_2_1() -> None:
    """Its limiter counts requests and not layers: held requests must not take the slots of those that download."""
    with ColdStart(["2.1"] * 4, upstream_mbit=UPSTREAM // 2) as cold:
        cold.start_sidecars(follow="on", verify_first="1MiB")
        image = cold.image([2 * MIB] * 12)
        assert_one_copy(cold.pull(image), image)
        assert_no_traceback(cold)


def test_two_images_crosswise() -> None:
    """The first node begins with one image and the second with the other, so each may claim what the other follows."""
    with ColdStart(["2.1"] * 3, upstream_mbit=UPSTREAM) as cold:
        cold.start_sidecars(**FLAGS)
        images = [cold.image(LAYERS), cold.image(LAYERS)]
        outcome = cold.pull(*images)
        assert not outcome.failures
        assert len(outcome.pulls) == 6
        # nodes that wait for each other give up after seconds and go upstream
        assert outcome.copies <= 2.0
        assert_no_traceback(cold)


def test_a_mixed_ring() -> None:
    """Runtimes follow each other, because they all keep downloads in one form."""
    with ColdStart(["1.6", "docker28", "2.1", "1.7"], upstream_mbit=UPSTREAM) as cold:
        cold.start_sidecars(**FLAGS)
        image = cold.image(LAYERS)
        assert_one_copy(cold.pull(image, apart=0.3), image)
        assert_no_traceback(cold)


def test_without_the_setting_all_is_as_before() -> None:
    with ColdStart(["2.1"] * 2, upstream_mbit=UPSTREAM) as cold:
        cold.start_sidecars(follow="off")
        image = cold.image([4 * MIB])
        outcome = cold.pull(image)
        assert not outcome.failures
        assert len({client for client, digest in outcome.blobs if digest == image.amd64.layers[1]}) == 2


def assert_one_copy(outcome: Outcome, image: Image) -> None:
    assert not outcome.failures
    for digest in new_blobs(image):
        assert len({client for client, asked in outcome.blobs if asked == digest}) == 1, f"nodes that had {digest} sent"
    assert outcome.copies <= COPIES


def asked_upstream(outcome: Outcome, image: Image) -> dict[str, int]:
    return Counter(digest for _, digest in outcome.blobs if digest in new_blobs(image))


def new_blobs(image: Image) -> set[str]:
    """Its blobs without busybox, which is in each image."""
    return {image.amd64.config, *image.amd64.layers[1:]}


def assert_no_traceback(cold: ColdStart) -> None:
    for node in cold.nodes:
        assert "Traceback" not in node.sidecar.log()
