# What one spegel-consul sidecar needs, and nothing more.
#
#   consul acl policy create -name spegel -rules @policies/spegel.hcl
#
# Without the read rights below Consul does not refuse: health queries answer 200 with an empty list.

# Read, lock and release the leader key. Change it together with --consul-leader-key.
key "spegel/leader" {
  policy = "write"
}

# The lock's session is created on this agent's node. Where tokens belong to one node, narrow it to
# session "<node name>".
session_prefix "" {
  policy = "write"
}

# Register spegel, spegel-router, spegel-metrics and, on the leader, spegel-leader; and find them.
# Where Nomad or the agent's configuration registers the services, "read" is enough; then a killed leader is noticed
# only after two session TTLs, for want of spegel-leader.
service_prefix "spegel" {
  policy = "write"
}

# Instances are listed only together with their nodes.
node_prefix "" {
  policy = "read"
}

# The place of this node: the agent's datacenter, and its node's metadata (docs/zones.md). Not needed with --zone-from=off.
agent_prefix "" {
  policy = "read"
}
