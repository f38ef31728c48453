"""Which nodes are in? This node's services in Consul's catalog, and the healthy instances of others."""
