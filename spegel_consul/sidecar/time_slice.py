"""The time slice: how long a thread of the sidecar may run before other threads have their turn.

The sidecar runs for microseconds and then waits, but the kernel gives a thread slices of some milliseconds. So on a
busy machine each thread that wakes up waits until a thread that computes has used its slice: at each packet, at each
answer of a peer, at each piece to hash. Since Linux 6.12 a thread may ask for a shorter slice (sched-eevdf.rst). It has
no more CPU time than before, but a thread with a longer slice makes way for it when it wakes up. Older kernels ignore
the wish.

A new rule about the scheduling of the sidecar's threads belongs here.
"""

from __future__ import annotations

import ctypes
import os
import struct

SLICE = 100_000
"""Nanoseconds; the kernel accepts no less."""

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # unistd.h, because glibc has had a function for it only since 2.41
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""``struct sched_attr`` of linux/sched/types.h: size, policy, flags, nice, priority, runtime, deadline, period."""


def shorten() -> bool:
    """Ask for short slices, for this thread and for each one that it starts; return whether the kernel took the wish.

    A policy or a priority that the supervisor has chosen stays. A wish that is refused changes nothing.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wish = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE, 0, 0)
    return not ctypes.CDLL(None).syscall(number, 0, wish, 0)
