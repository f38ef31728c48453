"""The flags of ``registry`` for how much this node sends to peers and takes from them.

What each limit does is in docs/limits.md. A new flag of that kind belongs here.
"""

from __future__ import annotations

import click

from spegel_consul.commands.option_types import RATE, option, together

limit_options = together(
    option(
        "--max-upload",
        type=click.IntRange(1, 100_000),
        default=None,
        help="How many bodies above 64 KiB this node sends to peers at a time; a peer that asks for more is told to ask"
        " another one. This node's own runtimes are never refused.  [default: any number]",
    ),
    option(
        "--upload-rate-limit",
        type=RATE,
        default=None,
        help="Bytes per second of content that this node sends to peers, such as 50MiB/s; see docs/limits.md. This"
        " node's own runtimes are not limited.  [default: any number]",
    ),
    option(
        "--download-rate-limit",
        type=RATE,
        default=None,
        help="Bytes per second of content that this node takes from peers, such as 50MiB/s.  [default: any number]",
    ),
)
