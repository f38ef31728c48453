# What one spegel-consul sidecar needs, and nothing more.
#
#   consul acl policy create -name spegel -rules @consul/policies/spegel.hcl
#
# Without the read rights below Consul does not refuse: health queries answer 200 with an empty list.

# Read, lock and release the leader key. Change it together with the key's setting.
key "spegel/leader" {
  policy = "write"
}

# The lock's session is created on this agent's node. Where tokens belong to one node, narrow it to
# session "<node name>".
session_prefix "" {
  policy = "write"
}

# Register spegel, spegel-router and spegel-metrics, and find them.
# "read" is enough if Nomad registers the services.
service_prefix "spegel" {
  policy = "write"
}

# Instances are listed only together with their nodes.
node_prefix "" {
  policy = "read"
}

# The node's name, for stable service ids.
agent_prefix "" {
  policy = "read"
}
