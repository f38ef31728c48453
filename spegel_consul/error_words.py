"""``in_words``: the reason in an exception of the system, as people read it.

Python's text of such an exception begins with its number (``[Errno 111] Connection refused``) or names a line of C
(``_ssl.c:992``), and libraries copy it into their own messages. A person needs the words alone. All errors, warnings
and findings for people use this one function; a new form of such a text belongs here.
"""

from __future__ import annotations

import re
import ssl

_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_NUMBERS = re.compile(r"\[(?:Errno|WinError) -?\d+\] ?|\[[A-Z0-9_]+: [A-Z0-9_]+\] ?|\[SSL\] ?| ?\(_ssl\.c:\d+\)")
_ADDRESS = re.compile(r"Error connecting to \([^)]*\): ")
"""Trio's words before the reason; the caller names the address."""


def in_words(exc: BaseException) -> str:
    """The reason without numbers, in one line: ``Connection refused``; the kind of the exception if it has no text.

    The name of a file is left out of an OSError, because the caller names it.
    """
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(reason := getattr(exc, "reason", None), Exception):  # urllib's errors wrap another one
        exc = reason
    if isinstance(exc, ssl.SSLError) and getattr(exc, "reason", None) in _NO_TLS:
        return "the other side does not speak TLS"
    text = str((isinstance(exc, OSError) and exc.strerror) or exc)
    return " ".join(_NUMBERS.sub("", _ADDRESS.sub("", text)).split()) or type(exc).__name__
