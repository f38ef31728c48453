# Three calls of the CRI with one string in each direction.  Written by hand, because the generated module would be
# ten thousand lines of which these are all that a test needs:
#
#   PullImageRequest   { ImageSpec image = 1; }     ImageSpec { string image = 1; }
#   PullImageResponse  { string image_ref = 1; }
#   RemoveImageRequest { ImageSpec image = 1; }
#   VersionResponse    { string version = 1; string runtime_name = 2; … }

"""The Container Runtime Interface, as far as kubelet uses it for images."""

from __future__ import annotations

from pathlib import Path

import grpc

_LENGTH_DELIMITED = 2


class CriError(Exception):
    """The daemon's refusal, with its gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


def pull_image(socket: Path, ref: str, timeout: float) -> str:
    """Have the daemon pull ``ref``; returns the image's id. Raises CriError, also after ``timeout``."""
    answer = _call(socket, "ImageService/PullImage", _field(1, _field(1, ref.encode())), timeout)
    return _first_string(answer)


def remove_image(socket: Path, ref: str, timeout: float = 20) -> None:
    _call(socket, "ImageService/RemoveImage", _field(1, _field(1, ref.encode())), timeout)


def is_served(socket: Path) -> bool:
    """Whether the daemon has its CRI service up."""
    try:
        _call(socket, "RuntimeService/Version", b"", timeout=5)
    except CriError:
        return False
    return True


def _call(socket: Path, method: str, request: bytes, timeout: float) -> bytes:
    # containerd refuses the authority that gRPC derives from a socket's path
    with grpc.insecure_channel(f"unix://{socket}", options=[("grpc.default_authority", "localhost")]) as channel:
        try:
            answer: bytes = channel.unary_unary(f"/runtime.v1.{method}")(request, timeout=timeout)
        except grpc.RpcError as exc:
            raise CriError(exc.code(), exc.details() or "") from None
    return answer


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _first_string(message: bytes) -> str:
    if not message or message[0] != (1 << 3 | _LENGTH_DELIMITED):
        raise ValueError(f"no field 1 at the start of {message!r}")
    length, shift, at = 0, 0, 1
    while True:
        byte = message[at]
        length |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return message[at : at + length].decode()
