# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A measurement for people: next to what the profile expects and to the last one, as JSON, text and one HTML page.

Private to this collection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._html import COLOURS, page, svg_text

UNITS = {"*_s": "seconds", "*_tokens_per_s": "tokens a second", "*_tokens": "tokens", "*_joules": "joules"}
UNITS.update({"*_mhz": "megahertz", "*_watts": "watts", "acceptance": "share of the drafts, by position"})

# What of a point is compared with the last run: its name, the unit, how it is read, and whether more of it is better.
_FIGURES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None], bool], ...] = (
    ("time to first token", "s", lambda point: _p50(point, "ttft_s"), False),
    ("time per output token", "s", lambda point: _p50(point, "tpot_s"), False),
    ("prefill of a request", "tokens/s", lambda point: _p50(point, "prefill_tokens_per_s"), True),
    ("decode of a request", "tokens/s", lambda point: _p50(point, "decode_tokens_per_s"), True),
    ("all requests together", "tokens/s", lambda point: point["output_tokens_per_s"], True),
)
_HEADS = ("prompt", "at once", "first token s", "p90", "prefill tok/s", "token ms", "p90", "tok/s each", "tok/s all")
_STYLE = """
td:nth-child(2), th:nth-child(2) { text-align: right; } tr.last td { color: #6c757d; border-bottom-color: #adb5bd; }
table.named td:first-child, table.named th:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem 2rem; } .charts h3 { font-size: 1rem; margin: 0; }
"""
# A run differs from the one before it by so much without a reason.
_NOISE = 0.05


def _p50(point: Mapping[str, Any], name: str) -> float | None:
    return point[name]["p50"] if point[name] else None


def _key(point: Mapping[str, Any]) -> tuple[int, int, int]:
    return point["prompt_tokens"], point["concurrency"], point["output_tokens"]


def _shown(number: float | None) -> str:
    """Three digits that count."""
    if number is None:
        return "-"
    if number >= 100:
        return format(round(number), ",")
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 1 else f"{number:.3f}"


def _acceptance(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """The share of drafts that were kept at each position, over all points."""
    engines = [point["engine"] for point in points if point["engine"]["drafts"]]
    drafts = sum(engine["drafts"] for engine in engines)
    positions = max((len(engine["acceptance"]) for engine in engines), default=0)
    kept = [
        sum(engine["acceptance"][place] * engine["drafts"] for engine in engines if place < len(engine["acceptance"]))
        for place in range(positions)
    ]
    return [round(each / drafts, 4) for each in kept]


def _beside(name: str, unit: str, seen: float | None, expected: Sequence[float]) -> dict[str, Any]:
    low, high = min(expected), max(expected)
    ratio = None
    if seen is not None and low > 0:
        ratio = 1.0 if low <= seen <= high else seen / (low if seen < low else high)
    return {
        "name": name,
        "unit": unit,
        "seen": seen,
        "expected": list(expected),
        "ratio": None if ratio is None else round(ratio, 3),
    }


def beside_expected(points: Sequence[Mapping[str, Any]], expect: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured for one user next to what the profile expects; 1.0 is inside of it.

    The speed is that after the shortest prompt, prefill that of the longest.
    """
    alone = sorted((point for point in points if point["concurrency"] == 1), key=_key)
    rows = []
    if alone and expect.get("tokens_per_s"):
        seen = _p50(alone[0], "decode_tokens_per_s")
        rows.append(_beside("decode, one user", "tokens/s", seen, expect["tokens_per_s"]))
    if alone and expect.get("prefill_tokens_per_s"):
        seen = _p50(alone[-1], "prefill_tokens_per_s")
        rows.append(_beside("prefill, one user", "tokens/s", seen, expect["prefill_tokens_per_s"]))
    measured = _acceptance(points)
    for place, share in enumerate(expect.get("acceptance") or []):
        kept = measured[place] if place < len(measured) else None
        rows.append(_beside(f"drafts kept at position {place + 1}", "", kept, [share]))
    return rows


def beside_last(points: Sequence[Mapping[str, Any]], last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Every figure that the last run has as well, and now divided by then."""
    before = {_key(point): point for point in (last or {}).get("points", [])}
    rows = []
    for point in points:
        other = before.get(_key(point))
        for name, unit, read, more in _FIGURES:
            now, then = read(point), read(other) if other else None
            if now is None or not then:
                continue
            ratio = now / then
            change = ratio - 1 if more else 1 - ratio
            verdict = "better" if change > _NOISE else "worse" if change < -_NOISE else "same"
            rows.append(
                {
                    **{key: point[key] for key in ("prompt_tokens", "concurrency", "output_tokens")},
                    "name": name,
                    "unit": unit,
                    "now": now,
                    "then": then,
                    "ratio": round(ratio, 3),
                    "verdict": verdict,
                }
            )
    return rows


def document(
    points: Sequence[Mapping[str, Any]], about: Mapping[str, Any], last: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The whole result. *about* says what was measured: profile, date, versions, and its ``expect``."""
    expect = dict(about.get("expect") or {})
    return {
        **{key: value for key, value in about.items() if key != "expect"},
        "units": UNITS,
        "points": list(points),
        "acceptance": _acceptance(points),
        "expected": beside_expected(points, expect),
        "expected_source": expect.get("source", ""),
        "last": {"date": last["date"], "figures": beside_last(points, last)} if last else None,
    }


def _cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    ttft, tpot, prefill, decode = (
        point[name] or {} for name in ("ttft_s", "tpot_s", "prefill_tokens_per_s", "decode_tokens_per_s")
    )
    return (
        format(point["prompt_tokens"], ","),
        str(point["concurrency"]),
        _shown(ttft.get("p50")),
        _shown(ttft.get("p90")),
        _shown(prefill.get("p50")),
        _shown(tpot["p50"] * 1000 if tpot else None),
        _shown(tpot["p90"] * 1000 if tpot else None),
        _shown(decode.get("p50")),
        _shown(point["output_tokens_per_s"]),
    )


def text_table(result: Mapping[str, Any]) -> list[str]:
    """The result as lines of text."""
    cells = [_HEADS, *(_cells(point) for point in result["points"])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells]
    for row in result["expected"]:
        lines.append(
            f"{row['name']}: {_shown(row['seen'])}, expected {_range(row['expected'])} {row['unit']}".rstrip()
            + ("" if row["ratio"] is None else f" (x{row['ratio']:.2f})")
        )
    moved = [row for row in (result["last"] or {}).get("figures", []) if row["verdict"] != "same"]
    if result["last"]:
        lines.append(f"Beside the run of {result['last']['date']}: {len(moved)} figures differ by more than 5 %")
    for row in moved:
        lines.append(
            f"  {row['prompt_tokens']} tokens x {row['concurrency']}, {row['name']}: {_shown(row['now'])} after"
            f" {_shown(row['then'])} {row['unit']} (x{row['ratio']:.2f}, {row['verdict']})"
        )
    return lines + list(result.get("left_out") or []) + _problems(result)


def _problems(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{point['prompt_tokens']} tokens x {point['concurrency']}: {problem}"
        for point in result["points"]
        for problem in point["problems"]
    ]


def _range(bounds: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{bound:g}" for bound in bounds))


# --- The page ------------------------------------------------------------------------------------------------------

Line = Sequence[tuple[Any, "float | None", "float | None"]]


def _top(highest: float) -> float:
    """A round number not below the highest."""
    step = 1.0
    while step > highest > 0:
        step /= 10
    while step * 10 <= highest:
        step *= 10
    return next(step * part for part in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * part >= highest)


def _chart(title: str, along: str, lines: Mapping[str, Line], dashed: Mapping[str, Line], band: Sequence[float]) -> str:
    """Lines over named places, those of the last run dashed, and what is expected as a band.

    A line has (place, value, upper end of its whisker).
    """
    values = [
        value
        for line in (*lines.values(), *dashed.values())
        for _x, *pair in line
        for value in pair
        if value is not None
    ]
    if not values:
        return ""
    places = sorted({point[0] for line in lines.values() for point in line})
    top = _top(max([*values, *band]) or 1.0)
    left, right, low, high = 62.0, 450.0, 250.0, 36.0

    def x(place: Any) -> float:
        return left + (right - left) * (places.index(place) + 0.5) / len(places)

    def y(value: float) -> float:
        return low - (low - high) * value / top

    pieces = []
    if band:
        height = max(y(min(band)) - y(max(band)), 1.5)
        pieces.append(
            f'<rect x="{left}" y="{y(max(band)):.1f}" width="{right - left}" height="{height:.1f}" fill="#cfe8d5"/>'
        )
        pieces.append(svg_text(right - 4, y(max(band)) - 4, "expected", "end", fill="#2d6a4f"))
    for part in range(5):
        level = top * part / 4
        pieces.append(f'<path d="M{left} {y(level):.1f}H{right}" stroke="#e9ecef"/>')
        pieces.append(svg_text(left - 6, y(level) + 4, _shown(level) if level else "0", "end"))
    pieces += [svg_text(x(place), low + 18, format(place, ","), "middle") for place in places]
    pieces.append(svg_text((left + right) / 2, low + 38, along, "middle"))
    legend = left
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        for drawn, rule in ((dashed.get(name, ()), ' stroke-dasharray="5 4" opacity="0.6"'), (line, "")):
            kept = [(place, value) for place, value, _end in drawn if value is not None and place in places]
            path = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in kept)
            pieces.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{rule}/>')
        for place, value, end in line:
            if value is None:
                continue
            if end is not None:
                pieces.append(f'<path d="M{x(place):.1f} {y(value):.1f}V{y(end):.1f}" stroke="{colour}"/>')
            words = f"<title>{escape(name)}: {_shown(value)}</title>"
            pieces.append(f'<circle cx="{x(place):.1f}" cy="{y(value):.1f}" r="3.5" fill="{colour}">{words}</circle>')
        pieces.append(f'<rect x="{legend:.1f}" y="8" width="11" height="11" fill="{colour}"/>')
        pieces.append(svg_text(legend + 16, 18, name))
        legend += 30 + 6.5 * len(name)
    drawing = f'<svg viewBox="0 0 470 295" role="img" aria-label="{escape(title)}">{"".join(pieces)}</svg>'
    return f"<div><h3>{escape(title)}</h3>{drawing}</div>"


def _lines(
    points: Sequence[Mapping[str, Any]], name: str, by: str, along: str, words: str, whisker: bool
) -> dict[str, Line]:
    """One line for each value of *by*, over the values of *along*."""
    found: dict[str, list[tuple[Any, float | None, float | None]]] = {}
    for point in points:
        figure = point[name]
        value, end = (figure, None) if not isinstance(figure, Mapping) else (figure["p50"], figure["p90"])
        line = found.setdefault(f"{format(point[by], ',')} {words}".strip(), [])
        line.append((point[along], value, end if whisker else None))
    return {label: sorted(line) for label, line in found.items()}


def _charts(result: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    points = result["points"]
    keys = {_key(point) for point in points}
    before = [point for point in (last or {}).get("points", []) if _key(point) in keys]
    bands = {row["name"]: row["expected"] for row in result["expected"]}
    pieces = []
    for title, name, by, along, words, whisker, band in (
        ("Time to the first token, s", "ttft_s", "concurrency", "prompt_tokens", "at once", True, ""),
        ("Prefill of a request, tokens/s", "prefill_tokens_per_s", "concurrency", "prompt_tokens", "at once", False,
         "prefill, one user"),
        ("Decode of a request, tokens/s", "decode_tokens_per_s", "concurrency", "prompt_tokens", "at once", False,
         "decode, one user"),
        ("All requests together, tokens/s, by tokens of prompt", "output_tokens_per_s", "prompt_tokens", "concurrency",
         "", False, ""),
    ):  # fmt: skip
        axis = "tokens of prompt" if along == "prompt_tokens" else "requests at once"
        now, then = (_lines(some, name, by, along, words, whisker) for some in (points, before))
        pieces.append(_chart(title, axis, now, then, bands.get(band, ())))
    if result["acceptance"]:
        kept = {"measured": [(place + 1, share, None) for place, share in enumerate(result["acceptance"])]}
        shares = [row["expected"][0] for row in result["expected"] if row["name"].startswith("drafts kept")]
        wanted = {"expected": [(place + 1, share, None) for place, share in enumerate(shares)]} if shares else {}
        pieces.append(_chart("Drafts kept", "position of the draft", {**kept, **wanted}, {}, ()))
    return f'<div class="charts">{"".join(pieces)}</div>'


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table; each row has its class and its cells."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        '<tr class="{}">{}</tr>'.format(rule, "".join(f"<td>{escape(cell)}</td>" for cell in cells))
        for rule, cells in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.2f}"


def html_page(result: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    """The whole page."""
    title = f"{result['profile']}: how fast is it?"
    facts = [
        f"Measured {result['date']} on {', '.join(result['nodes'])}, engine {result['engine_version'] or 'unknown'}"
    ]
    facts.append(f"plan {str(result['plan_sha256'] or 'none')[:12]}, runtime {result['runtime'] or 'unknown'}")
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape('; '.join(facts))}.</p>"]
    parts += [f'<p class="no">{escape(problem)}.</p>' for problem in _problems(result)]
    parts += [f"<p>{escape(words)}.</p>" for words in result["left_out"]]
    if result["last"]:
        parts.append(f"<p>Dashed, and grey in the table: the run of {escape(result['last']['date'])}.</p>")
    parts += [_charts(result, last), "<h2>Every point</h2>"]
    before = {_key(point): point for point in (last or {}).get("points", [])}
    rows: list[tuple[str, Sequence[str]]] = []
    for point in result["points"]:
        rows.append(("", _cells(point)))
        if _key(point) in before:
            rows.append(("last", _cells(before[_key(point)])))
    parts.append(_table(_HEADS, rows))
    parts.append("<p>Medians; p90 is what nine of ten requests stay below.</p>")
    if result["expected"]:
        parts.append("<h2>Next to what the profile expects</h2>")
        cells = [
            ("", (row["name"], _shown(row["seen"]), _range(row["expected"]), row["unit"], _ratio(row["ratio"])))
            for row in result["expected"]
        ]
        parts.append(_table(("", "measured", "expected", "", "ratio"), cells, "named"))
    if result["expected_source"]:
        parts.append(f"<p>Source of what is expected: {escape(result['expected_source'])}</p>")
    if result["last"]:
        parts.append("<h2>Next to the last run</h2>")
        compared = [
            (
                "",
                (
                    f"{row['prompt_tokens']:,} tokens x {row['concurrency']}: {row['name']}",
                    _shown(row["now"]),
                    _shown(row["then"]),
                    row["unit"],
                    _ratio(row["ratio"]),
                    row["verdict"],
                ),
            )
            for row in result["last"]["figures"]
        ]
        parts.append(_table(("", "now", "then", "", "ratio", ""), compared, "named"))
    parts += _gpu_part(result)
    return page(title, parts, _STYLE)


def _gpu_part(result: Mapping[str, Any]) -> list[str]:
    """Energy and clocks of every point; a sentence where there is no GPU."""
    words = [f"<p>{escape(sentence)}</p>" for sentence in result["gpu_sentences"]]
    rows: list[tuple[str, Sequence[str]]] = []
    for point in result["points"]:
        gpu = point.get("gpu")
        if gpu:
            clocks = gpu["sm_clock_mhz"]
            cells = (
                f"{point['prompt_tokens']:,} tokens x {point['concurrency']}",
                _shown(gpu["energy_joules"]),
                _shown(gpu["joules_per_output_token"]),
                _shown(gpu["power_watts"]),
                f"{clocks['min']} / {clocks['median']}" if clocks else "-",
            )
            rows.append(("", cells))
    heads = ("", "energy J", "J per token out", "power W", "clock MHz, lowest / median")
    return ["<h2>Energy and clocks</h2>", *words, *([_table(heads, rows, "named")] if rows else [])]
