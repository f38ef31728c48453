# For those who want to know what the process is doing.  Walking all tasks and tracing memory cost time, so they are for
# people on the machine itself.

"""``/debug/tasks`` and ``/debug/memory``."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import trio
from quart import Blueprint, Response, request

from spegel_consul.web.access import request_origin

_PACKAGES = Path(__file__).parents[2]
_LONGEST_TRACE = 30.0
_threads = trio.CapacityLimiter(1)


def blueprint() -> Blueprint:
    """The routes below ``/debug`` that are not pages."""
    debug = Blueprint("debug", __name__, url_prefix="/debug")

    @debug.before_request
    async def only_from_here() -> Response | None:
        if request_origin.from_this_machine() and not request_origin.from_another_site():
            return None
        return text(403, "this is for requests from the machine itself")

    @debug.get("/tasks")
    async def tasks() -> Response:
        """The tree of Trio's tasks, and where each of them waits."""
        root = trio.lowlevel.current_root_task()
        return text(200, "\n".join(_tree(root, 0)) if root is not None else "")

    @debug.get("/memory")
    async def memory() -> Response:
        """What was allocated during ``seconds`` (1 to 30) and is still there, by line of code."""
        try:
            seconds = min(_LONGEST_TRACE, max(1.0, float(request.args.get("seconds", "5"))))
        except ValueError:
            return text(400, "seconds is a number from 1 to 30")
        if tracemalloc.is_tracing():
            return text(429, "another trace is going on")
        tracemalloc.start()
        try:
            await trio.sleep(seconds)
            taken = await trio.to_thread.run_sync(tracemalloc.take_snapshot, limiter=_threads)
        finally:
            tracemalloc.stop()
        lines = [f"allocated within {seconds:g} s and still there; resident: {_resident() >> 20} MiB"]
        most = taken.statistics("lineno")[:40]
        lines += [f"{stat.size:>10} bytes {stat.count:>7} objects  {_where(stat)}" for stat in most]
        return text(200, "\n".join(lines))

    return debug


def _tree(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    frames = [frame for frame, _ in task.iter_await_frames()]
    ours = [frame for frame in frames if "spegel_consul" in frame.f_code.co_filename] or frames
    at = f"{_short(ours[-1].f_code.co_filename)}:{ours[-1].f_lineno} {ours[-1].f_code.co_name}" if ours else "runs"
    yield f"{'  ' * depth}{task.name}  ({at})"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda child: child.name):
            yield from _tree(child, depth + 1)


def _short(path: str) -> str:
    return os.path.relpath(path, _PACKAGES) if path.startswith(str(_PACKAGES)) else path


def _where(stat: tracemalloc.Statistic) -> str:
    return f"{_short(stat.traceback[0].filename)}:{stat.traceback[0].lineno}"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def text(status: int, body: str) -> Response:
    return Response(body + "\n", status=status, content_type="text/plain; charset=utf-8")
