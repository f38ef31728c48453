"""Makes the pictures of README.md from one run of ``spegel-consul dev --herd``.

python .ci/pictures.py               runs it, and writes docs/images: herd.txt, herd.svg and status-page.png
python .ci/pictures.py --drawing     writes herd.svg anew, from the run that herd.txt has

``consul`` and ``chromium-headless-shell`` have to be on PATH. herd.txt is what the terminal was sent at the beginning,
in the middle and at the end of the run; a test compares herd.svg with it. A picture of a run belongs here.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parents[1] / "docs/images"
_COLUMNS = 92
_END = b"running until Ctrl-C"
_ERASED = re.compile(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+")
"""What a terminal is sent to remove the drawing before the next one."""
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.S)


def _run() -> str:
    """Run the demonstration, and take the page of a follower at the end; all that the terminal was sent."""
    program = Path(sys.executable).with_name("spegel-consul")
    terminal, other = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, _COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = [program, "dev", "--herd"]
    demonstration = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    said = b""
    try:
        while _END not in said:
            said += os.read(terminal, 1 << 16)
        _, _, last = said.decode().rpartition("upstream\x1b[0m sent")
        # the first node of the drawing has all from upstream; each other has all from a neighbour
        follower = re.findall(r"node(\d)", last)[1]
        _photograph(re.findall(rb"http://\S+/debug/web/", said)[0].decode().replace("127.0.0.1", f"127.0.0.{follower}"))
    except OSError:
        raise SystemExit(f"the demonstration ended early:\n{said.decode()}") from None
    finally:
        demonstration.send_signal(signal.SIGINT)
        demonstration.wait()
    return said.partition(b"\r\n\r\n" + _END)[0].decode()


def kept(said: str) -> str:
    """The beginning, the drawing half-way, the last drawing and what follows it."""
    text = re.sub(r"\x1b\[\?25[lh]", "", said).replace("\r", "")
    *frames, last = _ERASED.split(text)
    begin, _, _ = frames[0].partition("\x1b[1mupstream")
    return "\n\n".join(part.strip("\n") for part in (begin, frames[len(frames) // 2], last)) + "\n"


def drawing(text: str) -> str:
    """The SVG of a terminal with this text; its fonts are those of the reader, because it loads nothing."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    # as a terminal does, which breaks a line where it is full
    console.print(Text.from_ansi("\x1b[1m$ spegel-consul dev --herd\x1b[0m\n" + text.rstrip(), overflow="fold"))
    svg = _FONTS.sub("", console.export_svg(title="spegel-consul dev --herd", unique_id="herd"))
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace")


def _photograph(url: str) -> None:
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium-headless-shell")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1100, "height": 600})
        page.goto(url)
        page.locator("#headline").wait_for()
        page.screenshot(path=IMAGES / "status-page.png")
        opened.close()


if __name__ == "__main__":
    if sys.argv[1:] != ["--drawing"]:
        (IMAGES / "herd.txt").write_text(kept(_run()))
    (IMAGES / "herd.svg").write_text(drawing((IMAGES / "herd.txt").read_text()))
