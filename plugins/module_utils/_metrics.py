# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format, as far as an engine's /metrics needs it.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    number: float


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: {"n": "\n"}.get(match.group(1), match.group(1)), text)


def parse_metrics(text: str) -> list[Sample]:
    """The samples of *text*; ValueError with the line that is none."""
    samples = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{line!r} is no sample in Prometheus' text format")
        name, labels_text, number = match.groups()
        labels = {}
        position = 0
        while labels_text and position < len(labels_text):
            label = _LABEL.match(labels_text, position)
            if label is None:
                raise ValueError(f"{line!r} has labels that cannot be read from {labels_text[position:]!r} on")
            labels[label.group(1)] = _unescape(label.group(2))
            position = label.end()
        samples.append(Sample(name, labels, float(number)))
    return samples


def total(samples: Sequence[Sample], name: str) -> float | None:
    """The sum of all samples called *name* (engines, models), or None when there is none."""
    found = [sample.number for sample in samples if sample.name == name]
    return sum(found) if found else None


def labels_of(samples: Sequence[Sample], name: str) -> Mapping[str, str] | None:
    """The labels of the first sample called *name*, which is how an engine tells its configuration."""
    return next((sample.labels for sample in samples if sample.name == name), None)
