# Points every node's runtime at its mirror, once per node, and again when the job is run with other values. What was
# there before is kept aside, and cleanup.nomad.hcl brings it back.
#
# hosts.toml is read with every pull; after a change of daemon.json Docker has to be restarted, which this does not do.
#
# Clients must allow the docker driver to mount host directories: volumes { enabled = true } in its plugin's configuration.

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "node_pool" {
  type    = string
  default = "all"
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "image" {
  type        = string
  default     = "ghcr.io/spegel-consul/spegel-consul:0.1.0"
  description = "The image of docker/."
}

variable "runtime" {
  type        = string
  default     = "docker"
  description = "Whose configuration: docker (28 and later), containerd, or docker-daemon (daemon.json)."
}

variable "mirror_targets" {
  type        = string
  default     = "http://$${attr.unique.network.ip-address}:5000"
  description = "Mirrors in the order to ask them, with commas: the node's own, then perhaps http://spegel.service.consul:5000."
}

variable "mirrored_registries" {
  type        = list(string)
  default     = []
  description = "Registries to mirror, such as https://docker.io; empty for all."
}

variable "resolve_tags" {
  type        = bool
  default     = true
  description = "Whether mirrors are asked for tags too, or for digests only."
}

job "spegel-configure" {
  type        = "sysbatch"
  datacenters = var.datacenters
  node_pool   = var.node_pool
  namespace   = var.namespace

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "configure" {
    task "configure" {
      driver = "docker"

      config {
        image        = var.image
        network_mode = "host"
        args = [
          "configuration",
          "--runtime=${var.runtime}",
          "--mirror-targets=${var.mirror_targets}",
          "--mirrored-registries=${join(",", var.mirrored_registries)}",
          "--resolve-tags=${var.resolve_tags}",
          "--prepend-existing=true",
        ]
        volumes = [
          "/etc/containerd:/etc/containerd",
          "/etc/docker:/etc/docker",
        ]
      }

      resources {
        cpu    = 100
        memory = 96
      }
    }
  }
}
