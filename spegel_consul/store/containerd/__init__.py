"""The content and images of a containerd, through its gRPC API and its content directory."""
