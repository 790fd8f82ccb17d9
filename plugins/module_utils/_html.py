# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One HTML page that needs nothing beside it: its own style and SVG, no script and no address.

Private to this collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLOURS = ("#3b6ea5", "#c8553d", "#588157", "#7a4e9b", "#b8860b", "#2a9d8f", "#6c757d", "#d1495b")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1f2933; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.no { color: #a4161a; } .yes { color: #2d6a4f; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #dee2e6; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.best td { font-weight: 600; background: #eef6f0; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1f2933; }
code { background: #f1f3f5; padding: .1rem .3rem; }
"""


def svg_text(x: float, y: float, words: str, anchor: str = "", weight: str = "", fill: str = "") -> str:
    """Words in a drawing."""
    style = f' text-anchor="{anchor}"' if anchor else ""
    rules = [f"{name}: {value}" for name, value in (("font-weight", weight), ("fill", fill)) if value]
    if rules:
        style += ' style="{}"'.format("; ".join(rules))
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(words)}</text>'


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """The whole page from the pieces of its body; *style* has rules of its own."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{style}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
