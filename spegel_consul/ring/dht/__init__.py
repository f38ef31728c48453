"""Kademlia without I/O: keys, records, placement, lookup and the wire format.

Nothing here knows sockets or reads a clock: ``now`` goes in, decisions come out.
"""
