"""containerd's configuration as its own program reads it: ``containerd config dump``.

The program of the running daemon is asked, with the file that the daemon was started with, so neither an upgrade nor a
rule that is not known here leads to a wrong answer. It starts no daemon and changes nothing. It takes some
milliseconds; its time and its output are limited. Its environment is empty, because a proxy's password may be in it.
The program of a daemon without root is run only by its own user, because root would run a program of that user's
choice.

Another question to a runtime's program belongs here.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
import tomllib
from pathlib import Path

from spegel_consul.error_words import in_words
from spegel_consul.preflight.containerd_files import Document
from spegel_consul.preflight.daemon_process import DaemonProcess

_WITHIN = 5.0
_MOST = 4 << 20
_LONGEST_REASON = 200


class NoDump(Exception):
    """The program did not print its configuration; the message is one line that says why."""


def ask(process: DaemonProcess, config: Path) -> Document:
    """The document that the program of ``process`` makes of ``config``. Waits 5 s at most. Raises NoDump."""
    if not process.may_be_run:
        raise NoDump(f"it belongs to user {process.owner}, whose programs are not run as user {os.geteuid()}")
    try:
        program = subprocess.Popen(  # noqa: S603 (the program that already runs as the daemon)
            [process.command[0], "--config", str(config), "config", "dump"],
            executable=process.program,
            cwd=process.cwd,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as exc:
        raise NoDump(f"its program can't be run: {in_words(exc)}") from None
    with program:
        try:
            text, complaint = _outputs(program)
            status = program.wait(_WITHIN)
        except subprocess.TimeoutExpired:
            raise NoDump(f"it did not end within {_WITHIN:g} s") from None
        finally:
            program.kill()
    if status != 0:
        lines = complaint.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
        raise NoDump(lines[-1][:_LONGEST_REASON])
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as exc:
        raise NoDump(f"it did not print TOML: {exc}") from None


def _outputs(program: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """All of its output and of its errors. Raises NoDump or TimeoutExpired, and leaves the program running then."""
    until = time.monotonic() + _WITHIN
    assert program.stdout is not None
    assert program.stderr is not None
    collected: dict[int, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for pipe in (program.stdout, program.stderr):
            collected[pipe.fileno()] = bytearray()
            selector.register(pipe.fileno(), selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(program.args, _WITHIN)
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                collected[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                elif len(collected[key.fd]) > _MOST:
                    raise NoDump(f"it printed more than {_MOST >> 20} MiB")
    out, err = collected.values()
    return bytes(out), bytes(err)
