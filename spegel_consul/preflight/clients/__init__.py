"""The checks of podman, CRI-O and BuildKit."""
