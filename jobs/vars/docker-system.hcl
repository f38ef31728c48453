# Nodes on which Docker (28 or newer, with the containerd image store) pulls the images and uses the system's containerd,
# as the packages of Debian, Ubuntu and docker.com do: `docker info -f '{{ .Containerd.Address }}'` prints
# /run/containerd/containerd.sock.
containerd_dir       = "/run/containerd"
containerd_content   = "/var/lib/containerd/io.containerd.content.v1.content"
containerd_namespace = "moby"
