# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around the measurement of a served model."""

from __future__ import annotations

import typing as t
from dataclasses import asdict

from ansible_collections.sparkrig.serving.plugins.module_utils._bench import gpu_figures, points
from ansible_collections.sparkrig.serving.plugins.module_utils._bench_report import document, html_page, text_table


def bench_points(bench: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The points of a profile's ``bench``, each with its words."""
    return [{**asdict(point), "words": point.words} for point in points(bench)]


def bench_report(
    results: t.Sequence[t.Mapping[str, t.Any]],
    about: t.Mapping[str, t.Any],
    last: t.Mapping[str, t.Any] | None = None,
    watches: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
) -> dict[str, t.Any]:
    """What bench_serving returned for every point as document, page and lines of text."""
    watched = {node: dict(watch) for node, watch in (watches or {}).items() if "samples" in watch}
    looks = {node: watch["samples"] for node, watch in watched.items()}
    measured = [dict(result["point"]) for result in results if result.get("point")]
    found = [{**point, "gpu": gpu_figures(point, looks)} for point in measured]
    sentences = [f"{node}: {watch['sentence']}" for node, watch in watched.items()]
    versions = [str(result["version"]) for result in results if result.get("version")]
    whole = document(
        found,
        {
            **about,
            "engine_version": versions[0] if versions else "",
            "gpu_sentences": sentences or ["No GPU was watched: the profile's device is a CPU."],
            "left_out": [str(result["sentence"]) for result in results if result.get("left_out")],
        },
        last or None,
    )
    return {"document": whole, "html": html_page(whole, last or None), "lines": text_table(whole)}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by their names."""
        return {"bench_points": bench_points, "bench_report": bench_report}
