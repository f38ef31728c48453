"""Prometheus metrics of one sidecar."""
