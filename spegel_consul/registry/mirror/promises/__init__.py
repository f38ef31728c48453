"""What a manifest promises to a client that asks one source only."""
