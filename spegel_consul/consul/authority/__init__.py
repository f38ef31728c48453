"""Certificates of Consul's own authority (Connect): how a sidecar gets one, and which peers it is believed."""
