"""Configuration of clients that have neither ``hosts.toml`` nor ``daemon.json``: podman, CRI-O and BuildKit."""
