# Nodes on which Docker (28 or newer, with the containerd image store) pulls the images and runs a containerd of its own:
# `docker info -f '{{ .Containerd.Address }}'` prints a path below /run/docker or /var/run/docker. If it prints
# /run/containerd/containerd.sock, use docker-system.hcl.
containerd_dir       = "/run/docker/containerd"
containerd_content   = "/var/lib/docker/containerd/daemon/io.containerd.content.v1.content"
containerd_namespace = "moby"
