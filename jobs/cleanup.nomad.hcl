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
  description = "The image of docker/, which you build and push; no registry has it for you. Pin it by digest in production: name@sha256:…"
}

variable "driver" {
  type        = string
  default     = "docker"
  description = "The driver that runs this task: docker, or podman where there is no Docker."
}

variable "config_directories" {
  type        = list(string)
  default     = ["/etc/containerd", "/etc/docker"]
  description = "Directories of the host with the runtimes' configuration, as for configure.nomad.hcl."
}

variable "containerd_namespace" {
  type        = string
  default     = "moby"
  description = "Not used here, but files in vars/ have it."
}

variable "containerd_dir" {
  type        = string
  default     = ""
  description = "Not used here, but files in vars/ have it."
}

variable "containerd_content" {
  type        = string
  default     = ""
  description = "Not used here, but files in vars/ have it."
}

job "spegel-cleanup" {
  type        = "sysbatch"
  datacenters = var.datacenters
  node_pool   = var.node_pool
  namespace   = var.namespace

  # Nomad leaves out nodes on which an unchanged job has ended: each run is a changed one
  meta {
    run = "${uuidv4()}"
  }

  ui {
    description = "Takes the mirrors out of the runtimes' configuration again, on every node."
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "cleanup" {
    task "cleanup" {
      driver = var.driver

      config {
        image        = var.image
        network_mode = "host"
        args         = ["cleanup"]
        volumes = [for directory in var.config_directories : "${directory}:${directory}"]
      }

      resources {
        cpu    = 100
        memory = 96
      }
    }
  }
}
