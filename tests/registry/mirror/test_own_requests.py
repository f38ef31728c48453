from __future__ import annotations

import pytest

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.registry.mirror.own_requests import SHOWN_FOR, OwnRequests

DIGEST = Digest.of(b"layer")


def request(reference: str = DIGEST, *, registry: str = "docker.io") -> ContentRequest:
    kind = "blobs" if ":" in reference else "manifests"
    return parse_content_path(f"/v2/library/app/{kind}/{reference}", f"ns={registry}")


def test_what_an_own_client_asked_for_is_shown_for_ten_minutes() -> None:
    own = OwnRequests()
    assert not own.asked(DIGEST, 5)
    own.note(request(), "GET", "", 5)
    assert own.asked(DIGEST, 5)
    assert own.asked(DIGEST, 5 + SHOWN_FOR)
    assert not own.asked(DIGEST, 6 + SHOWN_FOR)
    own.note(request(), "GET", "", 500)
    assert own.asked(DIGEST, 6 + SHOWN_FOR)
    assert not own.asked(Digest.of(b"other"), 500)


def test_a_download_that_grows_keeps_its_permission_and_one_that_stands_still_does_not() -> None:
    own, other = OwnRequests(), Digest.of(b"other")
    assert not own.any(5)
    own.note(request(), "GET", "", 5)
    assert own.any(5 + SHOWN_FOR)
    for now, size in ((5, 0), (400, 10), (800, 20), (1200, 30)):
        own.grow({DIGEST: size, other: size}, now)
        assert own.asked(DIGEST, now)
        assert not own.asked(other, now)
    own.grow({DIGEST: 30}, 1600)
    assert not own.asked(DIGEST, 1201 + SHOWN_FOR)
    assert not own.any(1201 + SHOWN_FOR)
    own.grow({DIGEST: 40}, 1202 + SHOWN_FOR)
    assert not own.asked(DIGEST, 1202 + SHOWN_FOR)


@pytest.mark.parametrize(
    ("asked", "method", "client"),
    [
        (request(), "HEAD", ""),
        (request(), "GET", "10.0.0.7"),
        (request(registry=""), "GET", ""),
        (request("v1"), "GET", ""),
    ],
    ids=["HEAD", "another machine's client", "no registry, so not filtered", "a tag"],
)
def test_other_requests_show_nothing(asked: ContentRequest, method: str, client: str) -> None:
    own = OwnRequests()
    own.note(asked, method, client, 5)
    assert not own.asked(DIGEST, 5)


def test_strangers_can_not_fill_the_memory() -> None:
    own = OwnRequests()
    for number in range(9000):
        own.note(request(Digest.of(b"%d" % number)), "GET", "", number)
    assert own.asked(Digest.of(b"8999"), 8999)
    assert not own.asked(Digest.of(b"800"), 801)


def test_requests_that_show_nothing_any_more_are_forgotten() -> None:
    own = OwnRequests()
    for number in range(3000):
        own.note(request(Digest.of(b"%d" % number)), "GET", "", number)
    assert len(own._asked) <= SHOWN_FOR + 2
    assert own.asked(Digest.of(b"2400"), 3000)
