"""Pages of the site that stand elsewhere in the tree, and links of pages to files that are no pages.

The READMEs of ``jobs/``, ``consul/`` and ``docker/`` are beside the files that they are about, and pages link to them
by their place in the tree. In the site they are pages like all others, and a link to a file leads to the repository.
A new page from outside of ``docs/`` belongs here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {"jobs/README.md": "jobs.md", "consul/README.md": "consul-files.md", "docker/README.md": "docker-image.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of OUTSIDE."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """``markdown`` with links that work in the site."""
    sources = {name: path for path, name in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in OUTSIDE or path.startswith("docs/"):
            return f"{image}[{text}]({OUTSIDE.get(path, path.removeprefix('docs/'))}{anchor})"
        if config.repo_url:
            return f"{image}[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
        return text  # because a name is better than a link that leads nowhere

    return _LINK.sub(link, markdown)
