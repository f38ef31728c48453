# The mirror without an image of its own, and confined: an archive, run by the node's Python in a chroot that Nomad makes
# (exec driver), with nothing of the host in it but what is named here.
#
# The clients name three directories in their configuration (here those of the system's containerd, see
# vars/docker.hcl for a Docker with its own), and let the task be root, which Nomad refuses unless it is
# told otherwise and containerd's socket asks for. The chroot needs the node's Python below /usr or /bin; it is a copy of
# the host's /usr, /lib, /etc and more, so the first start takes a minute unless `chroot_env` names less.
#
#   client {
#     options = { "user.denylist" = "Administrator" }
#     host_volume "spegel-containerd" { path = "/run/containerd" }
#     host_volume "spegel-content"    {
#       path      = "/var/lib/containerd/io.containerd.content.v1.content"
#       read_only = true
#     }
#     host_volume "spegel-data"       { path = "/var/lib/spegel" }
#   }
#
# configure.nomad.hcl, or the command `spegel-consul configuration`, points the runtimes at the mirror.

variable "job_name" {
  type        = string
  default     = "spegel"
  description = "Name of the job; part of Consul's binding rule and of the alerts that you write."
}

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

variable "artifact" {
  type        = string
  description = "URL of the archive that jobs/README.md shows how to make; it needs Python 3.11 or newer on the nodes."
}

variable "artifact_checksum" {
  type        = string
  description = "sha256:… of the archive. A mirror that anybody could replace on its way is none."
}

variable "python" {
  type    = string
  default = "/usr/bin/python3"
}

variable "registry_port" {
  type        = number
  default     = 5000
  description = "Same on all nodes, because the runtimes' configuration and spegel.service.consul:5000 name it."
}

variable "router_port" {
  type        = number
  default     = 5001
  description = "Same on all nodes, because address records in DNS carry no port."
}

variable "containerd_namespace" {
  type        = string
  default     = "moby"
  description = "moby for Docker, default for nerdctl and Nomad's containerd driver, k8s.io for CRI."
}

variable "mirrored_registries" {
  type        = list(string)
  default     = []
  description = "Registries to mirror, such as https://docker.io; empty for all."
}

variable "bootstrap_kind" {
  type        = string
  default     = "consul"
  description = "How the ring is found; several with commas, the later ones are fall-backs."
}

variable "consul_http_addr" {
  type        = string
  default     = "127.0.0.1:8500"
  description = "The node's Consul agent. Nomad hands a task the token, but not the address."
}

variable "consul_identity" {
  type        = bool
  default     = false
  description = "True if Consul has ACLs and the Nomad agents have no task_identity of their own in their configuration."
}

variable "peer_tls" {
  type        = string
  default     = "off"
  description = "prefer or require: encryption between nodes, with certificates of Consul (docs/security.md)."
}

variable "follow" {
  type        = string
  default     = "on"
  description = "off: content that no node has yet is not read from the node that is downloading it (docs/cold-start.md)."
}

variable "zone" {
  type        = string
  default     = ""
  description = "Place of the nodes, such as -var 'zone=$${node.datacenter}/$${meta.zone}'; empty: as Consul's agents say (docs/zones.md)."
}

variable "registry_filters" {
  type        = list(string)
  default     = []
  description = "Images to leave to upstream: regular expressions of names, such as :latest$."
}

variable "peer_policy" {
  type        = string
  default     = "any"
  description = "catalog: only registries in Consul's catalog are asked for content."
}

variable "extra_args" {
  type        = list(string)
  default     = []
  description = "More flags of spegel-consul registry, such as --verify-first=all; docs/cli.md has them."
}

variable "metrics_port" {
  type        = number
  default     = 0
  description = "0: Nomad chooses a port on each node, which the service spegel-metrics tells."
}

variable "priority" {
  type        = number
  default     = 90
  description = "With preemption on, which it is for system jobs, a node without room stops jobs of a lower one for the mirror."
}

variable "max_parallel" {
  type        = number
  default     = 1
  description = "How many nodes an update changes at a time; the first placement is on all nodes at once."
}

variable "log_level" {
  type    = string
  default = "info"
}

variable "cpu" {
  type    = number
  default = 200
}

variable "memory" {
  type    = number
  default = 192
}

variable "memory_max" {
  type        = number
  default     = 512
  description = "Used where the scheduler has memory oversubscription on."
}

job "spegel" {
  id          = var.job_name
  name        = var.job_name
  type        = "system"
  datacenters = var.datacenters
  node_pool   = var.node_pool
  namespace   = var.namespace
  priority    = var.priority

  ui {
    description = "A mirror of container images on every node: nodes fetch layers from each other, and from the registry what no node has."
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  update {
    max_parallel      = var.max_parallel
    stagger           = "15s"
    min_healthy_time  = "10s"
    healthy_deadline  = "3m"
    progress_deadline = "30m"
    auto_revert       = true
  }

  group "spegel" {
    # the catalog forgets the node first, then it stops: nobody is sent to a mirror that is on its way out
    shutdown_delay = "3s"

    restart {
      attempts = 10
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    network {
      mode = "host"

      port "registry" {
        static = var.registry_port
      }
      port "router" {
        static = var.router_port
      }
      port "metrics" {
        static = var.metrics_port
      }
    }

    volume "containerd" {
      type   = "host"
      source = "spegel-containerd"
    }

    volume "content" {
      type      = "host"
      source    = "spegel-content"
      read_only = true
    }

    volume "data" {
      type   = "host"
      source = "spegel-data"
    }

    # Three names, because DNS answers a name with all its instances, whatever their ports are.
    service {
      name     = "spegel"
      port     = "registry"
      provider = "consul"

      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        interval = "2s"
        timeout  = "2s"
      }
      check {
        name     = "alive"
        type     = "http"
        path     = "/livez"
        interval = "10s"
        timeout  = "3s"
        # DNS need not wait for it as well
        initial_status = "passing"

        check_restart {
          limit = 6
          grace = "60s"
        }
      }
    }

    service {
      name     = "spegel-router"
      port     = "router"
      provider = "consul"

      check {
        name     = "listens"
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    service {
      name     = "spegel-metrics"
      port     = "metrics"
      provider = "consul"

      check {
        name     = "alive"
        type     = "http"
        path     = "/livez"
        interval = "10s"
        timeout  = "3s"
      }
    }

    task "spegel" {
      driver       = "exec"
      user         = "root"
      kill_signal  = "SIGTERM"
      kill_timeout = "25s"

      consul {}

      dynamic "identity" {
        for_each = var.consul_identity ? ["consul_default"] : []
        content {
          name = identity.value
          aud  = ["consul.io"]
          ttl  = "1h"
        }
      }

      artifact {
        source      = var.artifact
        destination = "local/spegel-consul"

        options {
          checksum = var.artifact_checksum
        }
      }

      volume_mount {
        volume      = "containerd"
        destination = "/spegel/containerd"
      }

      volume_mount {
        volume      = "content"
        destination = "/spegel/content"
        read_only   = true
      }

      volume_mount {
        volume      = "data"
        destination = "/spegel/data"
      }

      config {
        command = var.python
        args = concat([
          "-m",
          "spegel_consul",
          "registry",
          "--registry-addr=:${NOMAD_PORT_registry}",
          "--router-addr=:${NOMAD_PORT_router}",
          "--metrics-addr=:${NOMAD_PORT_metrics}",
          "--advertise-addr=${NOMAD_IP_registry}",
          "--node-name=${node.unique.name}",
          "--data-dir=/spegel/data",
          "--containerd-sock=/spegel/containerd/containerd.sock",
          "--containerd-namespace=${var.containerd_namespace}",
          "--containerd-content-path=/spegel/content",
          "--mirrored-registries=${join(",", var.mirrored_registries)}",
          "--bootstrap-kind=${var.bootstrap_kind}",
          "--follow=${var.follow}",
          "--peer-tls=${var.peer_tls}",
          "--peer-policy=${var.peer_policy}",
          "--log-level=${var.log_level}",
        ], [for filter in var.registry_filters : "--registry-filters=${filter}"], var.extra_args)
      }

      env {
        CONSUL_HTTP_ADDR = var.consul_http_addr
        ZONE             = var.zone
        PYTHONPATH       = "${NOMAD_TASK_DIR}/spegel-consul"
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
