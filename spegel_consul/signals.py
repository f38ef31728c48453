"""The signals that stop a command. A command that runs until it is told to stop takes them from here."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, and SIGINT unless the process was started with SIGINT ignored.

    A shell without job control starts a job in the background in that way, because Ctrl-C is meant for the job in the
    foreground (POSIX, Shell Command Language, 2.11); such a job must not begin to catch it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return (signal.SIGTERM, signal.SIGINT)
