# For the anonymous token, with which Consul answers DNS: what everybody may read, also without a token.
#
#   consul acl policy create -name spegel-dns -rules @policies/spegel-dns.hcl
#
# Add no rule here. With "agent" rights everybody who reaches an agent's HTTP port reads its configuration, metrics and
# log.

# The mirrors, and the leader's.
service_prefix "spegel" {
  policy = "read"
}

# Instances are listed only together with their nodes.
node_prefix "" {
  policy = "read"
}
