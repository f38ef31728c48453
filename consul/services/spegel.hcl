# The services of one host, for a sidecar that runs without Nomad and with --consul-service=external: what the agent's
# configuration registers, the sidecar need not. Goes to /etc/consul.d/, or `consul services register services/spegel.hcl`.
# The ports are those of --registry-addr, --router-addr and --metrics-addr.
#
# With --tls-cert-file and without --peer-tls, let "spegel is ready" ask the metrics port, 9090, which has no TLS.
# If several clusters share this Consul, each service needs meta { leader_key = "..." }, with the value of
# --consul-leader-key.

services {
  id   = "spegel"
  name = "spegel"
  port = 5000
  weights {
    passing = 10
    warning = 1
  }
  checks = [
    {
      id       = "spegel-ready"
      name     = "spegel is ready"
      http     = "http://127.0.0.1:5000/readyz"
      interval = "2s"
      timeout  = "2s"
    }
  ]
}

services {
  id   = "spegel-router"
  name = "spegel-router"
  port = 5001
  checks = [
    {
      id       = "spegel-router-listens"
      name     = "the router listens"
      tcp      = "127.0.0.1:5001"
      interval = "2s"
      timeout  = "2s"
    },
    {
      id       = "spegel-router-lives"
      name     = "its process answers"
      http     = "http://127.0.0.1:9090/livez"
      interval = "2s"
      timeout  = "2s"
    }
  ]
}

services {
  id   = "spegel-metrics"
  name = "spegel-metrics"
  port = 9090
  checks = [
    {
      id       = "spegel-metrics-lives"
      name     = "metrics answer"
      http     = "http://127.0.0.1:9090/livez"
      interval = "2s"
      timeout  = "2s"
    }
  ]
}
