# For nodes that follow and never lead, and for `spegel-consul leader`.
#
#   consul acl policy create -name spegel-reader -rules @policies/spegel-reader.hcl
#
# Do not give it to the anonymous token, because "agent" rights open an agent's configuration, metrics and log. DNS
# needs spegel-dns.hcl only.
#
# Such a sidecar says once that its token may not lead, and its services have to be registered by somebody else
# (--consul-service=external).

# Who leads.
key "spegel/leader" {
  policy = "read"
}

# Who takes part.
service_prefix "spegel" {
  policy = "read"
}

# Instances are listed only together with their nodes.
node_prefix "" {
  policy = "read"
}

# The place of this node: the agent's datacenter, and its node's metadata (docs/zones.md). Not needed with --zone-from=off.
agent_prefix "" {
  policy = "read"
}
