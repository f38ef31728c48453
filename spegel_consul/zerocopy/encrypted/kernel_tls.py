"""Whether the kernel encrypts (kTLS): asked once of the kernel, and then of each connection.

The kernel encrypts what is written to a socket after OpenSSL has given it the keys of the handshake. Then sendfile(2)
works as on a plain connection. Three things can be missing: the kernel's module ``tls``, an OpenSSL that was built for
it, and a cipher that both know. Only the module can be tested in advance, so :class:`KernelTls` tests it once with keys
of its own. :func:`encrypts` and :func:`decrypts` ask the kernel about one connection after its handshake, and no other
answer counts: the option TCP_ULP is set on sockets that nobody encrypts, and sendfile(2) would send clear text there.

A new rule about the decision for or against the kernel belongs here; the connection that follows from it belongs to
:mod:`spegel_consul.zerocopy.encrypted.kernel_socket`.
"""

from __future__ import annotations

import resource
import socket
import ssl
import struct
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

OP_ENABLE_KTLS = 1 << 3  # ssl.OP_ENABLE_KTLS from Python 3.12 on
SOL_TLS = 282  # include/linux/socket.h, linux/tls.h; Python has no names for them
SET_RECORD_TYPE = 1
_TCP_ULP = 31
_TX, _RX = 1, 2
_VERSIONS = frozenset({0x0303, 0x0304})  # TLS 1.2 and 1.3
_AES_GCM_128, _AES_GCM_256 = 51, 52
# the structures tls12_crypto_info_aes_gcm_128 and _256 with keys of zeros, for TLS 1.3
_PROBES = (
    struct.pack("=HH8s16s4s8s", 0x0304, _AES_GCM_128, b"", b"", b"", b""),
    struct.pack("=HH8s32s4s8s", 0x0304, _AES_GCM_256, b"", b"", b"", b""),
)
_PROBED = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"})
_WITHIN = 0.5  # seconds for a connection to this machine, which a packet filter may drop
_SHARE = 16  # of the files that this process may have, one part is the largest number of connections


class _Asked(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def encrypts(sock: _Asked) -> bool:
    """Whether the kernel encrypts what is written to ``sock``."""
    return _in_kernel(sock, _TX)


def decrypts(sock: _Asked) -> bool:
    """Whether the kernel decrypts what is read from ``sock``."""
    return _in_kernel(sock, _RX)


def _in_kernel(sock: _Asked, direction: int) -> bool:
    # the kernel answers EBUSY while it has no key, and EOPNOTSUPP or ENOPROTOOPT without the module
    try:
        version, cipher = struct.unpack("=HH", sock.getsockopt(SOL_TLS, direction, 4))
    except (OSError, struct.error):
        return False
    return version in _VERSIONS and cipher != 0


class KernelTls:
    """Whether connections of this process are to be encrypted by the kernel.

    A connection that OpenSSL begins on the socket costs more than one in memory, and two files more. So the kernel is
    not tried again after it has not encrypted a connection with a cipher that it knows: OpenSSL will not give it the
    next one either. A client can't cause that, because ciphers that were not tested do not count.
    """

    def __init__(self) -> None:
        self._supported: bool | None = None
        self._most = 0
        self._standing = 0
        self.encrypted: bool | None = None
        """Whether the kernel encrypted the last connection that it was asked about; None before the first one."""

    @property
    def supported(self) -> bool:
        """Whether the kernel takes the keys of the usual ciphers; the first use asks it."""
        if self._supported is None:
            self._supported = ssl.OPENSSL_VERSION_INFO >= (3,) and _takes_keys()
            self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
            if not self._supported:
                self.encrypted = False
        return self._supported

    @property
    def wanted(self) -> bool:
        """Whether OpenSSL is to begin the next connection on the socket."""
        return self.supported and self.encrypted is not False and self._standing < self._most

    def begun(self) -> None:
        """Count a connection that OpenSSL begins on the socket; :meth:`ended` ends it."""
        self._standing += 1

    def ended(self) -> None:
        """Count such a connection no more."""
        self._standing -= 1

    def found(self, encrypted: bool, cipher: str) -> None:
        """Take the kernel's answer for a connection with this ``cipher``."""
        if encrypted and self.encrypted is None:
            self.encrypted = True
            log.info("the kernel encrypts files for peers (kTLS)", cipher=cipher)
        elif not encrypted and cipher in _PROBED and self.encrypted is not False:
            self.encrypted = False
            log.info(
                "the kernel can encrypt (kTLS), but OpenSSL did not let it, so this process encrypts:"
                " an OpenSSL that was built with enable-ktls is needed",
                cipher=cipher,
                openssl=ssl.OPENSSL_VERSION,
            )


def _takes_keys() -> bool:
    """Whether both ends of a connection of this machine with itself take a key. Without OpenSSL, so it is cheap."""
    try:
        with socket.socket() as listener, socket.socket() as near:
            for each in (listener, near):
                each.settimeout(_WITHIN)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
            with far:
                for end, keys in zip((near, far), _PROBES, strict=True):
                    end.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
                    end.setsockopt(SOL_TLS, _TX, keys)
    except OSError:
        return False
    return True


KERNEL = KernelTls()
"""The decision of this process, which has one kernel and one OpenSSL."""
