"""The signals that stop a command. A command that runs until it is stopped gets them here."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, and SIGINT unless the process was started with SIGINT ignored.

    A shell without job control starts a background job with SIGINT ignored, because Ctrl-C is for the foreground job
    (POSIX, Shell Command Language, 2.11). Such a job must not handle the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return (signal.SIGTERM, signal.SIGINT)
