"""What is counted: Prometheus metrics of one sidecar."""
