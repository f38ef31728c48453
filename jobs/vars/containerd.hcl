# Nodes on which containerd itself pulls the images: nerdctl and Nomad's containerd driver ("default" and "nomad"), or CRI
# ("k8s.io"). For a Docker that uses the same containerd there is docker-system.hcl.
containerd_dir       = "/run/containerd"
containerd_content   = "/var/lib/containerd/io.containerd.content.v1.content"
containerd_namespace = "default"
