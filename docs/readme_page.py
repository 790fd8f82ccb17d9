# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hook of mkdocs: the README is the first page of the site, with links that lead within the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

README = Path(__file__).resolve().parent.parent / "README.md"


def as_page(text: str) -> str:
    """The README's text, its links as they are beside the other pages; what the site does not have is no link."""
    text = text.replace("](docs/", "](")
    text = re.sub(r"\]\(roles/(\w+)/README\.md\)", r"](reference/roles.md#\1)", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:)(?!(?:reference/)?[\w-]+\.md)[^)]+\)", r"\1", text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Lay the README beside the pages."""
    files.append(File.generated(config, "readme.md", content=as_page(README.read_text(encoding="utf-8"))))
    return files
