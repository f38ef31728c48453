# The mirror in a bridge network of its own, for clusters where tasks must not see the host's interfaces.
#
# Peers, runtimes and Consul reach it at the host's address; inside, the task has another one, so it must be told which
# one to advertise. Ports are the same inside and outside, because what is advertised names them. The Consul agent must
# listen on the host's address, not on loopback alone (client_addr in its configuration).
#
# configure.nomad.hcl points the runtimes at the mirror, with the host's address, because the port is mapped from that one:
#
#   nomad job run -var-file=vars/docker-system.hcl -var 'mirror_targets=http://${attr.unique.network.ip-address}:5000' \
#     configure.nomad.hcl
#
# With peer_tls = "require" the runtime needs a port of its own, because it comes from the bridge's address, as strangers
# may. It speaks plain text, so it must be open on loopback only: give each Nomad client a host network for that,
#
#   client { host_network "loopback" { cidr = "127.0.0.1/8" } }
#
# give this job runtime_port = 5002, and point the runtimes at it: -var mirror_targets=http://127.0.0.1:5002. Other
# allocations on this node's bridge reach that port as well, at the allocation's own address. Where these are strangers,
# forbid it (iptables, chain NOMAD-ADMIN), give --basic-auth-file, or use spegel.nomad.hcl.
#
# A runtime with an HTTP proxy needs that address in its NO_PROXY; `spegel-consul preflight` prints the line.
#
# Clients must allow the docker driver to mount host directories: volumes { enabled = true } in its plugin's configuration.

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

variable "image" {
  type        = string
  description = "The image of docker/, which you build and push; no registry has it for you. Pin it by digest in production: name@sha256:…"
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

variable "containerd_dir" {
  type        = string
  default     = "/run/docker/containerd"
  description = "Directory of containerd's socket, containerd.sock. The directory is mounted, as a restart makes a new socket."
}

variable "containerd_content" {
  type        = string
  default     = "/var/lib/docker/containerd/daemon/io.containerd.content.v1.content"
  description = "containerd's content store; read only."
}

variable "containerd_namespace" {
  type        = string
  default     = "moby"
  description = "moby for Docker, default for nerdctl and Nomad's containerd driver, k8s.io for CRI."
}

variable "data_dir" {
  type        = string
  default     = "/var/lib/spegel"
  description = "Directory on the host for the node's identity, which is all that is stored."
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
  default     = "$${attr.unique.network.ip-address}:8500"
  description = "The node's Consul agent as seen from the bridge network: the host's address, not loopback."
}

variable "consul_identity" {
  type        = bool
  default     = false
  description = "True if Consul has ACLs and the Nomad agents have no task_identity of their own in their configuration."
}

variable "peer_tls" {
  type        = string
  default     = "off"
  description = "prefer or require: encryption between nodes, with certificates of Consul; require needs runtime_port (docs/security.md)."
}

variable "runtime_port" {
  type        = number
  default     = 0
  description = "A port for the node's own runtimes, in plain text, for peer_tls = require; 0 for none."
}

variable "runtime_host_network" {
  type        = string
  default     = "loopback"
  description = "The host_network of the Nomad clients on which runtime_port is open; it must be loopback, as no password is asked."
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

variable "secrets_dir" {
  type        = string
  default     = ""
  description = "Directory on the hosts that the task sees, read only, as /etc/spegel: certificates and passwords for extra_args."
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

variable "nofile" {
  type        = string
  default     = "65536:65536"
  description = "Open files, soft and hard limit; each connection is one. Docker must have the right to set it."
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
      mode = "bridge"

      port "registry" {
        static = var.registry_port
        to     = var.registry_port
      }
      port "router" {
        static = var.router_port
        to     = var.router_port
      }
      # -1: inside the same as outside
      port "metrics" {
        static = var.metrics_port
        to     = -1
      }
      dynamic "port" {
        for_each = var.runtime_port > 0 ? [var.runtime_port] : []
        labels   = ["runtime"]
        content {
          static       = port.value
          to           = port.value
          host_network = var.runtime_host_network
        }
      }
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
      driver       = "docker"
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

      config {
        image = var.image
        init  = true

        # only data_dir is written to, and root may open what belongs to root without any capability
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]

        # each connection is an open file
        ulimit {
          nofile = var.nofile
        }

        # Nomad has its own checks
        healthchecks {
          disable = true
        }

        args = concat([
          "registry",
          "--registry-addr=:${NOMAD_PORT_registry}",
          "--router-addr=:${NOMAD_PORT_router}",
          "--metrics-addr=:${NOMAD_PORT_metrics}",
          "--advertise-addr=${NOMAD_HOST_IP_registry}",
          "--node-name=${node.unique.name}",
          "--data-dir=/var/lib/spegel",
          "--containerd-sock=/run/spegel-containerd/containerd.sock",
          "--containerd-namespace=${var.containerd_namespace}",
          "--containerd-content-path=${var.containerd_content}",
          "--mirrored-registries=${join(",", var.mirrored_registries)}",
          "--bootstrap-kind=${var.bootstrap_kind}",
          "--follow=${var.follow}",
          "--peer-tls=${var.peer_tls}",
          "--peer-policy=${var.peer_policy}",
          "--log-level=${var.log_level}",
        ], [for filter in var.registry_filters : "--registry-filters=${filter}"],
        var.runtime_port > 0 ? ["--runtime-addr=:${var.runtime_port}"] : [], var.extra_args)
        volumes = concat([
          "${var.containerd_dir}:/run/spegel-containerd",
          "${var.containerd_content}:${var.containerd_content}:ro",
          "${var.data_dir}:/var/lib/spegel",
        ], var.secrets_dir != "" ? ["${var.secrets_dir}:/etc/spegel:ro"] : [])
      }

      env {
        CONSUL_HTTP_ADDR = var.consul_http_addr
        ZONE             = var.zone
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
