# libp2p's __init__ imports all that it has - QUIC, relays, pubsub, DNS, a DHT - which is 17 MiB and a quarter of a
# second of things that are never called here.  A package that is in sys.modules already is not initialised again, so
# an empty one with the right path is put there first, and its modules are then imported one by one.

"""Importing this makes ``libp2p`` a plain namespace, if nobody has imported it before."""

from __future__ import annotations

import importlib.util
import sys
import types

for _name in ("libp2p", "libp2p.transport"):
    _spec = importlib.util.find_spec(_name)
    if _name not in sys.modules and _spec is not None and _spec.submodule_search_locations:
        _package = types.ModuleType(_name)
        _package.__path__ = list(_spec.submodule_search_locations)
        _package.__spec__ = _spec
        sys.modules[_name] = _package
