"""A stateless peer-to-peer mirror of container images for Nomad and Docker clusters."""

from spegel_consul import lean_imports

__version__ = "0.1.0"

lean_imports.install()
