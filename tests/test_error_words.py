"""Errors of the system are said in words, everywhere where a person may read them."""

from __future__ import annotations

import ast
import errno
import os
import socket
import ssl
from urllib.error import URLError

import httpx
import pytest
from test_house import FILES, PRODUCT

from spegel_consul.error_words import in_words

SYSTEM = {
    "OSError", "ConnectionError", "ConnectionRefusedError", "FileNotFoundError", "PermissionError", "TimeoutError",
    "socket.gaierror", "socket.error", "gaierror", "ssl.SSLError", "SSLError", "httpx.HTTPError",
    "httpx.TransportError", "httpx.ConnectError", "httpx.RequestError",
}  # fmt: skip
"""Exceptions whose text has a number."""


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (OSError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/no/such"), "No such file or directory"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"), "wrong version number"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused"),
        (OSError(111, "Error connecting to ('127.0.0.1', 8500): Connection refused"), "Connection refused"),
        (OSError("[Errno 111] Error connecting to ('::1', 80, 0, 0): No route"), "No route"),
        (ExceptionGroup("all", [ExceptionGroup("some", [OSError(1, "Not permitted")])]), "Not permitted"),
        (URLError(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")), "Connection refused"),
        (OSError("two\nlines"), "two lines"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("x [2001:db8::1]:80"), "x [2001:db8::1]:80"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_reason_is_in_words(exc: Exception, words: str) -> None:
    assert in_words(exc) == words


def raw_texts(tree: ast.AST) -> list[int]:
    """The lines on which a handler of an error of the system uses the error's own text."""
    found = []
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if not SYSTEM.intersection(map(ast.unparse, kinds)):
            continue

        def is_it(node: ast.AST, name: str = handler.name) -> bool:
            return isinstance(node, ast.Name) and node.id == name

        for node in ast.walk(handler):
            match node:
                case ast.FormattedValue(value=value, conversion=-1):
                    parts = value.values if isinstance(value, ast.BoolOp) else [value]
                    raw = any(map(is_it, parts))
                case ast.Call(func=ast.Name(id="str"), args=[argument]):
                    raw = is_it(argument)
                case ast.Call(func=ast.Name(id="getattr"), args=[argument, ast.Constant(value="reason"), *_]):
                    raw = is_it(argument)
                case ast.Attribute(attr="strerror", value=value):
                    raw = is_it(value)
                case _:
                    raw = False
            if raw:
                found.append(node.lineno)
    return sorted(set(found))


def test_no_handler_shows_an_error_of_the_system_by_its_own_text() -> None:
    files = [path for path in FILES if path.name != "error_words.py"]
    raw = {path.relative_to(PRODUCT).as_posix(): raw_texts(ast.parse(path.read_text())) for path in files}
    assert {path: lines for path, lines in raw.items() if lines} == {}


def test_the_search_finds_what_it_should() -> None:
    code = "try: pass\nexcept (OSError, ValueError) as exc:\n  raise X(f'{exc or 1}')\n"
    assert raw_texts(ast.parse(code)) == [3]
    assert raw_texts(ast.parse(code.replace("exc or 1", 'getattr(exc, "reason", exc)'))) == [3]
    assert raw_texts(ast.parse(code.replace("exc or 1", "in_words(exc)"))) == []
