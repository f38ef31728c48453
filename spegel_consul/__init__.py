"""A stateless peer-to-peer mirror of container images for Nomad and Docker clusters."""

__version__ = "0.1.0"
