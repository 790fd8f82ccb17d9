# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the memory planners of the supported vLLM versions differ.

One row of the table is one planner dialect: what it counts, what it logs and the words it refuses with.
Private to this collection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True)
class Dialect:
    """The habits of one planner.

    layouts: the layout of the cache can be chosen (0.30 and later).
    alignment: what the distance of blocks is rounded up to: nothing (`no`), whole token rows of sparse MLA (`rows`), or
    the kernels' own blocks (`kernels`).
    counts_states: CUDA graphs want one block for each sequence of a model with recurrent layers.
    null_block: one block is held back when a request is checked against the budget (0.30 and later).
    check: `layers` sums every layer of a rank (0.13), `groups` counts whole pool blocks.
    concurrency: `bytes` divides one request's bytes by the bytes of a pool block, `groups` adds up blocks.
    tokens: `blocks` shows blocks // groups * block size * DCP, `requests` shows concurrency * context.
    in_flight: sliding windows keep one batch (`batch`) or every batch in flight (`batches`).
    group_ratio_percent: up to this size ratio the largest bucket of layers decides the group size.
    override_counts: a number of blocks that overrides the budget is what a request is checked against.
    projects_layers: a pipeline rank counts only its own layers of a mixed-page group.
    pads_state_pages: state pages of a hybrid may be padded to the largest page.
    pads_attention_pages: attention pages that do not divide the largest may be padded too: `no`, `all` or `plain` (all
    but MLA).
    window_kernels: a sliding-window layer takes a block size of its own: the `smallest` that its kernel runs, or the
    largest that is `fitting` into the block size (`no`: it does not).
    caches_state_prefixes: hybrids cache prefixes unless they are told not to.
    keeps_every_state: cached prefixes of Mamba2 keep the state of every block; `undrafted`: only without drafts.
    kernel_step: tokens that blocks of a hybrid are multiples of (0: the backend's smallest, or the block size).
    checkpoint_kinds: recurrent states that keep one more block for a checkpoint inside the prefill.
    gdn_checkpoint_tokens: blocks of a gated-delta-net hybrid that takes such checkpoints are multiples of this.
    state_blocks_by_length: recurrent states are counted by context over block size (0.13).
    shares_indexers: layers may share the indexer of another layer; before, every layer has its own.
    rescales_yarn: a context is yarn's factor times the length before it (up to 0.28).
    late_interleave: the DCP interleave is compared with the blocks of the planned cache, not with those asked for.
    overlaps_stages: asynchronous scheduling keeps one batch more than there are pipeline stages.
    owner, mentions_cpu, dcp_texts, tp_dcp_text, auto_fit_text: how this version words things.
    utilization: default of gpu_memory_utilization.
    """

    name: str
    version: tuple[int, int]
    null_block: bool = False
    layouts: bool = False
    alignment: str = "no"
    counts_states: bool = True
    auto_fit: bool = True
    check: str = "groups"
    concurrency: str = "bytes"
    tokens: str = "requests"
    log_lines: int = 2
    log_names_device: bool = False
    in_flight: str = "batch"
    group_ratio_percent: int = 150
    override_counts: bool = True
    projects_layers: bool = True
    pads_state_pages: bool = True
    pads_attention_pages: str = "all"
    window_kernels: str = "no"
    caches_state_prefixes: bool = False
    keeps_every_state: str = "no"
    kernel_step: int = 0
    checkpoint_kinds: tuple[str, ...] = ()
    gdn_checkpoint_tokens: int = 1
    state_blocks_by_length: bool = False
    shares_indexers: bool = True
    rescales_yarn: bool = True
    late_interleave: bool = True
    overlaps_stages: bool = False
    owner: str = "model's"
    mentions_cpu: bool = True
    dcp_texts: str = "long"
    tp_dcp_text: str = "tp_size={tp} must be divisible by dcp_size={dcp}."
    auto_fit_text: str = "available"
    utilization: float = 0.92


_ROWS = (
    Dialect(
        name="0.13",
        version=(0, 13),
        late_interleave=False,
        auto_fit=False,
        counts_states=False,
        check="layers",
        tokens="blocks",
        group_ratio_percent=125,
        override_counts=False,
        projects_layers=False,
        pads_attention_pages="no",
        pads_state_pages=False,
        state_blocks_by_length=True,
        keeps_every_state="always",
        kernel_step=16,
        shares_indexers=False,
        owner="models's",
        mentions_cpu=False,
        dcp_texts="short",
        tp_dcp_text="tp_size={tp} must be divisible bydcp_size={dcp}.",
        utilization=0.9,
    ),
    Dialect(
        name="0.20",
        version=(0, 20),
        tokens="blocks",
        override_counts=False,
        pads_attention_pages="no",
        shares_indexers=False,
        pads_state_pages=False,
        keeps_every_state="undrafted",
        owner="models's",
        mentions_cpu=False,
        dcp_texts="short",
        tp_dcp_text="tp_size={tp} must be divisible bydcp_size={dcp}.",
    ),
    Dialect(
        name="0.24",
        version=(0, 24),
        pads_state_pages=False,
        keeps_every_state="always",
        dcp_texts="short",
        tp_dcp_text="tp_size={tp} must be divisible bydcp_size={dcp}.",
    ),
    Dialect(
        name="0.26",
        version=(0, 26),
        keeps_every_state="always",
        in_flight="batches",
        dcp_texts="short",
        window_kernels="smallest",
        caches_state_prefixes=True,
    ),
    Dialect(
        name="0.28",
        version=(0, 28),
        window_kernels="smallest",
        caches_state_prefixes=True,
        in_flight="batches",
        concurrency="groups",
        log_lines=1,
    ),
    Dialect(
        name="0.30",
        version=(0, 30),
        window_kernels="fitting",
        caches_state_prefixes=True,
        null_block=True,
        layouts=True,
        rescales_yarn=False,
        overlaps_stages=True,
        in_flight="batches",
        concurrency="groups",
        log_lines=1,
        log_names_device=True,
        pads_attention_pages="plain",
    ),
)
_V030 = _ROWS[-1]
_V031 = replace(_V030, name="0.31", version=(0, 31), alignment="rows")
_V032 = replace(
    _V030, name="0.32", version=(0, 32), alignment="kernels", auto_fit_text="device", checkpoint_kinds=("mamba2",)
)
_V033 = replace(_V032, name="0.33", version=(0, 33), checkpoint_kinds=("mamba2", "gdn"), gdn_checkpoint_tokens=64)
# The seed's fork of June 2026 logs what 0.24 logs.
_DARK_DEVOTION = replace(_ROWS[2], name="dark-devotion", utilization=0.9)

# Minor versions that were compared with the published wheels, and the row that each follows.
_BY_MINOR = {
    13: _ROWS[0],
    20: _ROWS[1],
    24: _ROWS[2],
    26: _ROWS[3],
    28: _ROWS[4],
    30: _V030,
    31: _V031,
    32: _V032,
    33: _V033,
}

KNOWN_ENGINES = "0.13, 0.20, 0.24, 0.26, 0.28, 0.30, 0.31, 0.32, 0.33 or dark-devotion"
_VERSION = re.compile(r"^0\.(\d+)(?:\.\d+)?(?:[.+-]?[A-Za-z0-9.+-]*)?$")


def find_dialect(engine: str) -> Dialect:
    """The planner of an engine.

    engine: a vLLM version (`0.32.0`, `0.32.0+cpu`) or `dark-devotion`.
    """
    if engine == "dark-devotion":
        return _DARK_DEVOTION
    match = _VERSION.match(engine)
    row = _BY_MINOR.get(int(match.group(1))) if match else None
    if row is None:
        raise ValueError(f"engine: {engine!r} is not a planner that is known here; known are {KNOWN_ENGINES}")
    return row


def format_gib(dialect: Dialect, size_bytes: int) -> str:
    """Bytes as the engine prints GiB: rounded to two places, 0.13 with both places always shown."""
    if dialect.version < (0, 20):
        return f"{size_bytes / GIB:.2f}"
    return str(round(size_bytes / GIB, 2))
