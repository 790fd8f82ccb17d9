# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kernels refuse after the capacity was printed: the versions that say these words are those that have them.

Their builders and forward passes need a GPU, so the words are looked for in the sources: in the installed 0.32, and in
those of the other versions.
"""

from __future__ import annotations

import ast
import os
import typing as t
from functools import cache
from pathlib import Path

import pytest

from lab.sources import python_sources
from tests.oracle.oracle import VARIABLE
from tests.oracle.test_kernels import OTHER_VERSIONS

VERSIONS = [
    "0.32.0",
    *(pytest.param(version, marks=pytest.mark.slow) for version in OTHER_VERSIONS),
]
# The beginning of the words, the files of the package that may say them, and the versions that do: first and end.
WORDS = (
    ("DCP not support fp8 kvcache now.", "*/mla/common.py */layers/attention/mla_attention.py", "0.13.0", "0.26.0"),
    ("DCP sparse indexer currently supports only", "*/mla/indexer.py", "0.26.0", "0.30.0"),
    ("DCP for FlashMLA sparse requires the local and ", "*/mla/flashmla_sparse.py", "0.30.0", "1"),
    ("DCP for FlashMLA sparse requires an fp8_ds_mla kv-cache", "*/mla/flashmla_sparse.py", "0.30.0", "1"),
    ("--kv-cache-dtype nvfp4 requires sm100f, ", "*/backends/flashinfer.py", "0.24.0", "0.26.0"),
    ("The DCP prefill wrapper cannot read NVFP4 block scales.", "*/backends/flashinfer.py", "0.32.0", "1"),
    ("There is a bug in FlashInfer block_size 16 head size 256", "*/backends/flashinfer.py", "0.13.0", "0.20.0"),
    ("Window left is not the same for all layers. ", "*/backends/flashinfer.py", "0.13.0", "1"),
    ("Unrecognized FP8 dtype: ", "*/backends/flash_attn.py", "0.13.0", "0.24.0"),
)


def package(version: str) -> Path:
    """The folder of vLLM's package."""
    (packages,) = Path(os.environ[VARIABLE]).parents[1].glob("lib/python3.*/site-packages")
    return (packages if version == "0.32.0" else python_sources(version, packages)) / "vllm"


@cache
def strings(file: Path) -> tuple[str, ...]:
    """Every string in a file, parts that follow each other put together."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return tuple(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def says(version: str, words: str, patterns: t.Iterable[str]) -> bool:
    """Whether one of the files says these words."""
    root = package(version)
    files = [file for pattern in patterns for file in root.rglob("*.py") if file.match(pattern)]
    return any(words in text for file in files for text in strings(file))


@pytest.mark.parametrize("version", VERSIONS)
def test_words_of_a_version(version: str) -> None:
    """A version says what ours has it say, and nothing that ours does not."""
    for words, patterns, since, end in WORDS:
        assert says(version, words, patterns.split()) == (since <= version < end), words
