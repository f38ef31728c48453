"""A stateless peer-to-peer mirror of container images for Nomad and Docker clusters."""

from spegel_consul.lean import imports as lean_imports

__version__ = "0.1.0"

lean_imports.install()
