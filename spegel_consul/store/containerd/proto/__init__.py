"""Messages of containerd's API, generated from ``containerd.proto`` by ``.ci/regenerate-protos``."""
