"""``/debug/tasks``: the tree of Trio's tasks, with the line at which each one waits.

Walking all tasks costs time, so only requests from this machine are answered. A new debug route that is not a page
belongs here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import trio
from quart import Blueprint, Response

from spegel_consul.web.access import request_origin

_PACKAGES = Path(__file__).parents[2]


def blueprint() -> Blueprint:
    """The routes below ``/debug`` that are not pages."""
    debug = Blueprint("debug", __name__, url_prefix="/debug")

    @debug.before_request
    async def only_from_here() -> Response | None:
        if request_origin.from_this_machine() and not request_origin.from_another_site():
            return None
        return text(403, "only requests from this machine are answered here")

    @debug.get("/tasks")
    async def tasks() -> Response:
        """The tree of Trio's tasks, and the line at which each one waits."""
        root = trio.lowlevel.current_root_task()
        return text(200, "\n".join(_tree(root, 0)) if root is not None else "")

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


def text(status: int, body: str) -> Response:
    return Response(body + "\n", status=status, content_type="text/plain; charset=utf-8")
