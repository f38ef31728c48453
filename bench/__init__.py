"""Measures the sidecar against nginx, docker-registry and Go; ``python -m bench --help`` says how."""
