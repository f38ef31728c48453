# What is worth setting on every Consul agent of a cluster that uses spegel-consul. Goes to /etc/consul.d/.

dns_config {
  # by default DNS also names mirrors that answer "too busy" (their check is a warning)
  only_passing = true

  # containerd and Docker look the name up for each request; 0 is the default
  service_ttl {
    "spegel"        = "5s"
    "spegel-leader" = "5s"
  }
}

limits {
  # long polls count; a sidecar has at most a handful, templates and other tools on the node come on top
  http_max_conns_per_client = 500
}
