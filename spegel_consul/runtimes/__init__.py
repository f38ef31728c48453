"""What is written on the host: hosts.toml and daemon.json, their backup and its undoing."""
