# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Horizontal bars of stacked segments as an SVG that needs nothing beside it: the one plot of the performance page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ansible_collections.sparkrig.serving.plugins.module_utils._html import COLOURS, svg_text

WIDTH, LEFT, RIGHT = 760.0, 210.0, 670.0
TOP, STEP, THICK = 44.0, 30.0, 19.0
LEGEND_LETTER = 6.6


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its segments by their names, and what stands behind its end."""

    name: str
    segments: Sequence[tuple[str, float]]
    words: str

    @property
    def total(self) -> float:
        """Its whole length."""
        return sum(value for _name, value in self.segments)


def _legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """The colours and their names in as many lines as they need, and where they end."""
    pieces, x, y = [], LEFT, top
    for number, name in enumerate(names):
        width = 30 + LEGEND_LETTER * len(name)
        if x + width > WIDTH and x > LEFT:
            x, y = LEFT, y + 18
        pieces.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="11" height="11" fill="{_colour(number)}"/>')
        pieces.append(svg_text(x + 16, y, name))
        x += width
    return pieces, y + 12


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def bars(title: str, rows: Sequence[Bar], wanted: float | None = None, wanted_words: str = "") -> str:
    """The drawing. *wanted* is a length that is marked across all bars."""
    names = list(dict.fromkeys(name for row in rows for name, _value in row.segments))
    longest = max([*(row.total for row in rows), wanted or 0.0]) or 1.0
    pieces = [svg_text(LEFT, 20, title, weight="600")]
    for place, row in enumerate(rows):
        y, x = TOP + STEP * place, LEFT
        pieces.append(svg_text(LEFT - 8, y + 14, row.name, "end"))
        for name, value in row.segments:
            width = (RIGHT - LEFT) * value / longest
            words = f"<title>{escape(f'{row.name}, {name}: {value:g}' if name else row.name)}</title>"
            box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{THICK}"'
            pieces.append(f'<rect {box} fill="{_colour(names.index(name))}">{words}</rect>')
            x += width
        pieces.append(svg_text(x + 6, y + 14, row.words))
    bottom = TOP + STEP * len(rows)
    if wanted is not None:
        x = LEFT + (RIGHT - LEFT) * wanted / longest
        line = f'd="M{x:.1f} {TOP - 8}V{bottom - 4:.1f}" stroke="#1f2933" stroke-dasharray="4 3"'
        pieces.append(f"<path {line}/>")
        pieces.append(svg_text(x, bottom + 10, wanted_words, "middle"))
        bottom += 18
    if names != [""]:
        legend, bottom = _legend(names, bottom + 12)
        pieces += legend
    height = bottom + 8
    style = "text { font: 12px system-ui, sans-serif; fill: #1f2933; }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}"'
        f' height="{height:g}" role="img" aria-label="{escape(title)}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(pieces)}</svg>\n'
    )
