"""Files daemon.json that dockerd accepts, though they are not what the standard of JSON says."""

BOM = "\ufeff"
ODD = {
    "a byte order mark": BOM + '{"debug": true}',
    "a byte order mark and nothing else": BOM,
    "null": "null\n",
    "a list that is null": '{"registry-mirrors": null, "insecure-registries": null, "debug": true}',
    "an object that is null": '{"features": null, "debug": true}',
    "a feature that is null": '{"features": {"containerd-snapshotter": null}}',
    "a name of others twice": '{"debug": true, "log-level": "info", "debug": false}',
    "mirrors twice": '{"registry-mirrors": ["https://a"], "debug": true, "registry-mirrors": ["https://b"]}',
    "mirrors twice, at last none": '{"registry-mirrors": ["https://a"], "registry-mirrors": []}',
    "features twice": '{"features": {"buildkit": true}, "debug": true, "features": {}}',
    "a feature twice": '{"features": {"buildkit": true, "buildkit": false}}',
}
