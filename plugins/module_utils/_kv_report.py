# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fit and a search for people: a text table, and one HTML page that needs nothing beside it.

The page holds its own SVG and style, no script and no address. Private to this collection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._html import COLOURS, page, svg_text

GIB = 2**30
_PARTS = (
    ("weights_bytes", "weights", "#3b6ea5"),
    ("kv_bytes", "KV cache", "#588157"),
    ("overhead_bytes", "overhead", "#b8860b"),
    ("reserve_bytes", "reserve", "#adb5bd"),
)
_SPARE, _SHORT = "#cfe8d5", "#a4161a"
_HEADS = ("", "cache", "DCP", "drafts", "sequences", "context", "KV GiB a rank", "spare GiB")


def _gib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / GIB:.2f}"


def _row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "*" if row["pareto"] else "",
        str(row["kv_cache_dtype"]),
        str(row["decode_context_parallel_size"]),
        str(row["num_speculative_tokens"]),
        str(row["max_num_seqs"]),
        format(row["max_model_len"], ","),
        _gib(row["kv_cache_memory_bytes"]),
        _gib(row["spare_bytes"]),
    )


def text_table(rows: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """The first rows of a search as lines of text; a star marks the Pareto-best."""
    if not rows:
        return ["No combination fits."]
    cells = [_HEADS, *(_row_cells(row) for row in rows[:limit])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    if len(rows) > limit:
        lines.append(f"... and {len(rows) - limit} more")
    return lines


def _bar(x: float, y: float, wide: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="14" fill="{colour}"/>'


def _steps(rank: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """Label, colour, where it starts and its bytes, of every step of a rank's waterfall."""
    steps, taken = [], 0
    for key, label, colour in _PARTS:
        steps.append((label, colour, taken, rank[key]))
        taken += rank[key]
    headroom = rank["headroom_bytes"]
    if headroom is not None:
        label, colour = ("spare", _SPARE) if headroom >= 0 else ("too much", _SHORT)
        steps.append((label, colour, min(taken, rank["available_bytes"]), abs(headroom)))
    return steps


def _waterfall(ranks: Sequence[Mapping[str, Any]]) -> str:
    """What each rank takes, step after step, until its memory ends; the last step is what is left or missing."""
    widest = max([max(rank["needed_bytes"], rank["available_bytes"] or 0) for rank in ranks] or [1]) or 1
    left, width, top = 190.0, 640.0, 24.0
    pieces: list[str] = []
    for rank in ranks:
        node = " {}".format(rank["node"]) if rank["node"] else ""
        available = rank["available_bytes"]
        total = f"{_gib(rank['needed_bytes'])} GiB of {_gib(available)} GiB"
        if available is None:
            total = f"{_gib(rank['needed_bytes'])} GiB in all; the memory of the node was not given"
        pieces.append(svg_text(0, top, f"rank {rank['rank']}{node}: {total}", weight="bold"))
        steps = _steps(rank)
        for number, (label, colour, start, size) in enumerate(steps):
            y = top + 10 + number * 19
            x, wide = left + width * start / widest, width * size / widest
            pieces.append(svg_text(left - 10, y + 11, label, "end"))
            pieces.append(_bar(x, y, max(wide, 0.5), colour))
            words = f"{_gib(size)} GiB"
            if wide > 100:
                pieces.append(svg_text(x + wide - 6, y + 11, words, "end", fill="#fff"))
            elif x + wide < left + width - 100:
                pieces.append(svg_text(x + wide + 6, y + 11, words))
            else:
                pieces.append(svg_text(x - 6, y + 11, words, "end"))
        if available is not None:
            end, low = left + width * available / widest, top + 10 + len(steps) * 19
            pieces.append(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{top + 6:.1f}" y2="{low:.1f}" stroke="{_SHORT}"/>')
        top += 36 + len(steps) * 19
    return f'<svg viewBox="0 0 980 {top:.0f}" role="img" aria-label="memory by rank">{"".join(pieces)}</svg>'


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[tuple[int, int]]]:
    """By DCP, the longest context for each number of sequences, of the cache and drafts of the best row."""
    if not rows:
        return {}
    best = next((row for row in rows if row["pareto"]), rows[0])
    curves: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        same = all(row[key] == best[key] for key in ("kv_cache_dtype", "num_speculative_tokens"))
        if same and row["longest"]:
            curves.setdefault(row["decode_context_parallel_size"], []).append(
                (row["max_model_len"], row["max_num_seqs"])
            )
    return {dcp: sorted(points) for dcp, points in sorted(curves.items())}


def _chart(curves: Mapping[int, Sequence[tuple[int, int]]]) -> str:
    """Context against sequences, both logarithmic, one line for each DCP."""
    points = [point for line in curves.values() for point in line]
    low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
    high_y = max(p[1] for p in points)
    span_x = math.log(max(high_x, low_x + 1) / low_x) or 1.0
    span_y = math.log(high_y) or 1.0

    def place(context: int, sequences: int) -> tuple[float, float]:
        return 70 + 780 * math.log(context / low_x) / span_x, 330 - 290 * math.log(sequences) / span_y

    pieces = [
        '<path d="M70 30V330H850" fill="none" stroke="#868e96"/>',
        svg_text(460, 372, "context in tokens", "middle"),
    ]
    pieces.append(svg_text(70, 20, "sequences side by side"))
    for context in sorted({point[0] for line in curves.values() for point in (line[0], line[-1])}):
        x, _y = place(context, 1)
        pieces.append(svg_text(x, 350, format(context, ","), "middle"))
    for sequences in sorted({point[1] for point in points}):
        _x, y = place(low_x, sequences)
        pieces.append(svg_text(60, y + 4, str(sequences), "end"))
    for number, (dcp, line) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        pieces.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            x, y = place(*point)
            pieces.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>DCP {dcp}: '
                f"{point[1]} sequences of {point[0]:,} tokens</title></circle>"
            )
        pieces.append(f'<rect x="870" y="{40 + number * 22}" width="12" height="12" fill="{colour}"/>')
        pieces.append(svg_text(888, 51 + number * 22, f"DCP {dcp}"))
    return '<svg viewBox="0 0 980 385" role="img" aria-label="context against sequences">{}</svg>'.format(
        "".join(pieces)
    )


def _chart_words(row: Mapping[str, Any]) -> str:
    drafts = row["num_speculative_tokens"]
    cache = escape(str(row["kv_cache_dtype"]))
    return (
        f"<p>The longest context for each number of requests side by side: cache {cache}, "
        f"{drafts or 'no'} draft token{'' if drafts == 1 else 's'}.</p>"
    )


def _html_table(rows: Sequence[Mapping[str, Any]], limit: int) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in _HEADS)
    body = []
    for row in rows[:limit]:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _row_cells(row))
        body.append('<tr class="{}">{}</tr>'.format("best" if row["pareto"] else "", cells))
    return "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>".format(head, "".join(body))


def _verdict(fit: Mapping[str, Any]) -> str:
    if fit["fits"]:
        lines = "<br>".join(escape(line) for line in str(fit["engine_log"]).splitlines())
        words = f'<p class="yes">It fits.</p><p><code>{lines}</code></p>'
    else:
        words = "".join(f'<p class="no">{escape(reason)}</p>' for reason in fit["reasons"])
    return words + "".join(f"<p>{escape(sentence)}.</p>" for sentence in fit["assumptions"])


def html_page(title: str, fit: Mapping[str, Any], found: Mapping[str, Any], limit: int = 200) -> str:
    """The whole page: the verdict, memory by rank, context against sequences, and the table of a search."""
    rows = found["rows"]
    best = [row for row in rows if row["pareto"]]
    curves = _curves(rows)
    parts = [f"<h1>{escape(title)}</h1>", _verdict(fit)]
    if fit["ranks"]:
        parts += ["<h2>Memory by rank</h2>", _waterfall(fit["ranks"])]
    if curves:
        parts += ["<h2>Context against concurrency, by DCP</h2>", _chart_words(best[0]), _chart(curves)]
    if not rows:
        parts.append("<h2>No combination fits</h2><p>{}</p>".format(escape(found["blocked"])))
        return page(title, parts)
    parts.append("<h2>Best combinations</h2>")
    parts.append(
        f"<p>{len(rows)} of {found['considered']} combinations fit; no other has both more context and more "
        "sequences than these.</p>"
    )
    parts.append(_html_table(best, limit))
    parts += ["<h2>All combinations, by {}</h2>".format(escape(found["aim"])), _html_table(rows, limit)]
    return page(title, parts)
