# Points every node's runtime at its mirror, once per node each time that the job is run. Nomad does not run it on nodes
# that join later: run it again after adding nodes. What was there before is kept aside, and cleanup.nomad.hcl brings it
# back.
#
# hosts.toml and registries.conf.d are read with every pull. After a change of daemon.json Docker has to be restarted, and
# of buildkitd.toml BuildKit; CRI-O has to be reloaded. This does none of it.
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

variable "runtime" {
  type        = string
  default     = ""
  description = "Whose configuration: docker (28 and later), containerd, docker-daemon (daemon.json), podman, crio or buildkit; empty: as the namespace says."
}

variable "driver" {
  type        = string
  default     = "docker"
  description = "The driver that runs this task: docker, or podman where there is no Docker."
}

variable "config_directories" {
  type        = list(string)
  default     = ["/etc/containerd", "/etc/docker"]
  description = "Directories of the host with the runtimes' configuration. /etc/containers for podman and CRI-O, /etc/buildkit for BuildKit; Docker makes one that is missing."
}

variable "containerd_namespace" {
  type        = string
  default     = "moby"
  description = "moby for Docker; any other means that containerd pulls the images."
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

variable "mirror_targets" {
  type        = string
  default     = "http://127.0.0.1:5000"
  description = "Mirrors in the order to ask them, with commas. The host's address for spegel-bridge.nomad.hcl, see there."
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

  # Nomad leaves out nodes on which an unchanged job has ended: each run is a changed one
  meta {
    run = "${uuidv4()}"
  }

  ui {
    description = "Points the container runtime of every node at its mirror."
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "configure" {
    # Older ones read no hosts.toml: give them -var runtime=docker-daemon and restart them.
    dynamic "constraint" {
      for_each = var.runtime == "docker" || var.runtime == "" && var.containerd_namespace == "moby" ? ["docker"] : []
      content {
        attribute = "${attr.driver.docker.version}"
        operator  = "version"
        value     = ">= 28.0.0"
      }
    }

    task "configure" {
      driver = var.driver

      config {
        image        = var.image
        network_mode = "host"
        args = [
          "configuration",
          "--runtime=${var.runtime != "" ? var.runtime : var.containerd_namespace == "moby" ? "docker" : "containerd"}",
          "--mirror-targets=${var.mirror_targets}",
          "--mirrored-registries=${join(",", var.mirrored_registries)}",
          "--resolve-tags=${var.resolve_tags}",
        ]
        volumes = [for directory in var.config_directories : "${directory}:${directory}"]
      }

      resources {
        cpu    = 100
        memory = 96
      }
    }
  }
}
