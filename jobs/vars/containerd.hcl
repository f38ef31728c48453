# Nodes on which containerd itself pulls the images: nerdctl and Nomad's containerd driver ("default" and "nomad"), or CRI
# ("k8s.io"). Docker packages that bring containerd along ("containerd.io") use the same directory, namespace "moby".
containerd_dir       = "/run/containerd"
containerd_content   = "/var/lib/containerd/io.containerd.content.v1.content"
containerd_namespace = "default"
