from __future__ import annotations

from spegel_consul.oci.digest import Digest
from spegel_consul.registry.content_cache import ByteCache

KIB = 1 << 10


def test_the_least_recently_used_content_goes_first() -> None:
    cache = ByteCache(3 * KIB)
    digests = [Digest.of(b"%d" % number) for number in range(4)]
    for digest in digests[:3]:
        cache.put(digest, bytes(KIB))
    assert cache.get(digests[0]) == bytes(KIB)
    cache.put(digests[3], bytes(KIB))
    assert [cache.get(digest) is not None for digest in digests] == [True, False, True, True]


def test_images_that_come_and_go_do_not_fill_the_cache() -> None:
    stored: set[Digest] = set()
    cache = ByteCache(1024 * KIB, stored.__contains__)
    lasting = Digest.of(b"lasting")
    stored.add(lasting)
    cache.put(lasting, b"lasting")
    for number in range(2000):
        fleeting = Digest.of(b"%d" % number)
        stored.add(fleeting)
        cache.put(fleeting, bytes(KIB))
        stored.remove(fleeting)
        assert len(cache._entries) <= 1024 / 128 + 2
    assert cache._size == sum(map(len, cache._entries.values()))
    assert cache.get(lasting) == b"lasting"
