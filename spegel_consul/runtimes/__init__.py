"""The runtimes' configuration on the host: hosts.toml and daemon.json, their backup and the restore."""
