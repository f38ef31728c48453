"""Facts about the machine that the sidecar runs on."""
