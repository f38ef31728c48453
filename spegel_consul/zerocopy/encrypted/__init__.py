"""Bytes of TLS connections, which the kernel can't move: through one buffer of this process, with few copies."""
