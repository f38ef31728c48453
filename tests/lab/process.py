# A daemon is started in a session of its own and is always ended by its pid.  nsenter and unshare replace
# themselves by the program they start, so the pid that we know is the daemon's, and a signal reaches it and not a
# wrapper.  Output goes to a file and not to a pipe: nobody has to read it, and it is still there after a failure.

"""Started processes, and commands that end."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HANG = 120.0
"""Seconds after which something is taken to hang.

It bounds a test that would wait for ever and tells nothing of speed, because a machine with much other work needs many
times what a free one does."""

TAIL_LINES = 40
_LINE_LENGTH = 500
_POLL, _LONGEST_POLL = 0.02, 0.3
_SAMPLE = 0.05  # seconds of CPU

_running: set[Process] = set()


class Failed(AssertionError):
    """A command failed, a process died, or something didn't happen in time."""


def load() -> float:
    """How many times longer than on a free machine a piece of work takes now: its wall time by its CPU time."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while (used := time.thread_time() - cpu) < _SAMPLE:
        pass
    return max(1.0, (time.perf_counter() - wall) / used)


def until(predicate: Callable[[], object], *, timeout: float, what: str) -> None:
    """Ask until ``predicate`` is true; raise Failed after ``timeout`` seconds, times the ``load()``."""
    began = time.monotonic()
    while not predicate():
        if (waited := time.monotonic() - began) > timeout and waited > timeout * load():
            raise Failed(f"not within {timeout:g} s: {what}")
        time.sleep(min(max(_POLL, waited / 10), _LONGEST_POLL))  # a question may cost more than what it waits for


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise Failed if the block takes longer than ``seconds``, times the ``load()``."""
    before, began = load(), time.monotonic()
    yield
    check_took(time.monotonic() - began, seconds, what, before)


def check_took(took: float, seconds: float, what: str, before: float = 1.0) -> None:
    """Raise Failed if ``took`` is more than ``seconds``, times the ``load()`` now or the one ``before``."""
    slower = max(before, load())
    if took > seconds * slower:
        raise Failed(f"{what}: {took:.2f} s, allowed are {seconds:g} s on a machine that is {slower:.1f} times slower")


@contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Kill and reap ``process`` on the way out, however the block is left.

    A process that has been in here for HANG seconds is killed too, so that a read of its output comes to an end.
    """
    hung = threading.Timer(HANG, process.kill)
    hung.daemon = True
    hung.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        hung.cancel()


def with_sigint() -> None:
    """For ``preexec_fn``: a process that is started with SIGINT ignored, as a job in the background is, stays deaf."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(argv: Sequence[str | Path], *, timeout: float = 20, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; raise Failed with the error output if it fails or hangs."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout, env=_environment(env), check=False
        )
    except subprocess.TimeoutExpired as exc:
        output = (exc.stdout or b"") + (exc.stderr or b"")
        raise Failed(f"{' '.join(words)}\nno end after {timeout:g} s\n{output.decode(errors='replace')}") from None
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Process:
    """A process that runs until it is stopped; its output is appended to ``log_path``."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], *, log_path: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.log_path = log_path
        self._paused = False
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(env),
                start_new_session=True,
            )
        self.pid = self._popen.pid
        _running.add(self)

    def __repr__(self) -> str:
        return f"<{self.name} pid {self.pid}>"

    @property
    def alive(self) -> bool:
        return self.returncode is None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._popen.poll()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and SIGKILL for one that ignores it. Returns the exit status, which says which it was."""
        if self.alive:
            self.signal(signal.SIGTERM)
            self.resume()
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                return self.kill9()
        return self._reaped()

    def kill9(self) -> int:
        """SIGKILL: no chance to say goodbye to anybody."""
        self.signal(signal.SIGKILL)
        return self._reaped()

    def pause(self) -> None:
        """SIGSTOP: its sockets stay open and nobody answers, as on a machine that hangs."""
        self._paused = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for it to end on its own."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self} still runs after {timeout:g} s\n{self.tail()}") from None

    def until(self, predicate: Callable[[], object], *, timeout: float, what: str) -> None:
        """Like ``until()``, but not longer than the process lives, and with the end of its log in the error."""

        def happened() -> bool:
            if predicate():
                return True
            if not self.alive:
                raise Failed(f"{self} ended with status {self.returncode} before: {what}\n{self.tail()}")
            return False

        try:
            until(happened, timeout=timeout, what=what)
        except Failed as exc:
            raise exc if not self.alive else Failed(f"{exc}\n{self.tail()}") from None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def tail(self, lines: int = TAIL_LINES) -> str:
        return tail(self.log_path, lines)

    def _reaped(self) -> int:
        status = self._popen.wait(10)
        _running.discard(self)
        return status


def tail(log_path: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log, with a title. Daemons print their whole configuration on one line; that is cut."""
    text = log_path.read_text(errors="replace").splitlines() if log_path.exists() else []
    return "\n".join([f"--- end of {log_path.name}", *(line[:_LINE_LENGTH] for line in text[-lines:])])


def is_running(pid: int) -> bool:
    """Whether a process of this pid exists and isn't a zombie, whoever started it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}


@atexit.register
def _end_all() -> None:
    for process in list(_running):
        process.kill9()
