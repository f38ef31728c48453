# Undoes what configure.nomad.hcl, or the configure task of spegel.nomad.hcl, did: the runtimes' configuration is what it
# was before. Run it before the mirror is removed for good; an upgrade does not need it.
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

job "spegel-cleanup" {
  type        = "sysbatch"
  datacenters = var.datacenters
  node_pool   = var.node_pool
  namespace   = var.namespace

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "cleanup" {
    task "cleanup" {
      driver = "docker"

      config {
        image        = var.image
        network_mode = "host"
        args         = ["cleanup"]
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
