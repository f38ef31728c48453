"""Messages between peers: the ``Host`` protocol and its libp2p adapter.

Nothing here knows the meaning of the messages.
"""
