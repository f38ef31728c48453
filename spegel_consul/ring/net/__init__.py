"""How do messages reach a peer? The ``Host`` protocol and its libp2p adapter.

Nothing here knows what the messages mean.
"""
