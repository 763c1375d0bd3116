"""Hooks of MkDocs: pages from files outside docs/, and links that lead to the same place in both.

README.md is the first page; SECURITY.md, CHANGELOG.md and others are pages too. A relative link in a file leads to
another file of the repository; here it becomes that of the page. A link to a file that is no page (code, a recipe)
becomes its text.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

PAGES = {
    "index.md": "README.md",
    "security.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "agents.md": "AGENTS.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages made of files outside docs/."""

PAGE_OF_FILE = {ROOT / file: page for page, file in PAGES.items()}

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
SOURCE = re.compile(r'(?P<name>src|srcset)="(?P<target>[^":]+)"')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for page, file in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files into links between pages."""
    file = ROOT / PAGES[page.file.src_uri] if page.file.src_uri in PAGES else DOCS / page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        found = page_target(file, page.file.src_uri, target)
        return f"{match['image']}[{match['text']}]({found}{anchor})" if found else match["text"]

    def source(match: re.Match[str]) -> str:
        return f'{match["name"]}="{page_target(file, page.file.src_uri, match["target"]) or match["target"]}"'

    return SOURCE.sub(source, LINK.sub(link, markdown))


def page_target(file: Path, page: str, target: str) -> str | None:
    """A link of `file` as the page `page` must write it; None if it leads to no page."""
    path = Path(os.path.normpath(file.parent / target))
    if path in PAGE_OF_FILE:
        found = PAGE_OF_FILE[path]
    elif path.is_relative_to(DOCS):
        found = path.relative_to(DOCS).as_posix()
    else:
        return None
    return os.path.relpath(found, Path(page).parent)
