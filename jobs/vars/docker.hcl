# Nodes on which Docker (28 or newer, with the containerd image store) pulls the images. Docker runs its own containerd,
# unless it was told to use the system's (then vars/containerd.hcl with containerd_namespace = "moby").
containerd_dir       = "/run/docker/containerd"
containerd_content   = "/var/lib/docker/containerd/daemon/io.containerd.content.v1.content"
containerd_namespace = "moby"
