# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What one layer keeps in the KV cache of one rank: page bytes, and blocks for one request.

The formulae are those of vLLM's `vllm.v1.kv_cache_interface`. Private to this collection.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import gcd

FULL = "full"
MLA = "mla"
INDEXER = "indexer"
SLIDING = "sliding"
CHUNKED = "chunked"
CROSS = "cross"
STATE = "state"

# Kinds whose block tables grow alike, so that layers with different pages can share one group.
_FAMILY = {FULL: FULL, MLA: FULL, INDEXER: FULL}


class EngineRefusal(Exception):
    """vLLM itself would die here; the text is vLLM's own."""


def ceil_div(number: int, divisor: int) -> int:
    """The smallest integer that is not below number / divisor."""
    return -(-number // divisor)


def round_up(number: int, step: int) -> int:
    """The smallest multiple of step that is not below number."""
    return ceil_div(number, step) * step


@dataclass(frozen=True)
class Demand:
    """What one request asks of the cache, and under which rules.

    context: tokens of the request; in_flight_tokens: scheduled but not yet settled tokens;
    dcp: ranks over which token positions are dealt out;
    encoder_tokens: tokens that the encoder may keep for cross attention;
    state_mode: how recurrent states are kept: `none`; with cached prefixes `align`, or `all` (a state for every block);
    `length` (0.13 without cached prefixes).
    """

    context: int
    in_flight_tokens: int
    dcp: int = 1
    encoder_tokens: int = 0
    state_mode: str = "none"


@dataclass(frozen=True)
class Spec:
    """The cache of one layer on one rank.

    kind: one of the constants above; block_size: tokens in one block;
    token_bytes: bytes of one token in this layer (attention kinds);
    state_bytes: bytes of one recurrent state (state kind);
    identity: all that tells two layers of equal size apart for the planner (heads, head sizes, dtype, ...);
    padded_page: page size in bytes when it was padded; window: tokens of a window or chunk;
    retained: tokens kept below the window for drafts;
    draft_states, checkpoint_states: recurrent states beyond the mode's own number;
    sharded: DCP deals out this cache; stride: bytes that a block's stride must be a multiple of;
    kernel_rows: tokens of the largest block that the kernel runs, where longer blocks must be whole kernel blocks
    (0: no such rule).
    """

    kind: str
    block_size: int
    token_bytes: int = 0
    state_bytes: int = 0
    identity: tuple[Hashable, ...] = ()
    padded_page: int | None = None
    window: int = 0
    retained: int = 0
    draft_states: int = 0
    checkpoint_states: int = 0
    sharded: bool = True
    stride: int = 1
    kernel_rows: int = 0

    @property
    def alignment(self) -> int:
        """Bytes that the distance between two blocks must be a multiple of."""
        if self.kernel_rows == 0:
            return self.stride
        rows = gcd(self.kernel_rows, self.block_size)
        if rows == self.block_size:
            return 1
        return self.token_bytes * rows if self.padded_page is None else self.padded_page

    @property
    def raw_page(self) -> int:
        """Bytes of one block of this layer without padding."""
        return self.state_bytes if self.kind == STATE else self.token_bytes * self.block_size

    @property
    def page(self) -> int:
        """Bytes of one block of this layer."""
        return self.raw_page if self.padded_page is None else self.padded_page

    @property
    def family(self) -> str:
        """The kind as far as grouping is concerned."""
        return _FAMILY.get(self.kind, self.kind)

    def with_block_size(self, block_size: int) -> Spec:
        """The same layer with other blocks."""
        return replace(self, block_size=block_size)

    def with_page(self, page_bytes: int) -> Spec:
        """The same layer with its page padded."""
        return replace(self, padded_page=page_bytes)

    def request_blocks(self, demand: Demand) -> int:
        """Blocks of this layer that one request may hold at once."""
        return _BLOCKS[self.kind](self, demand)


def _full_blocks(spec: Spec, demand: Demand) -> int:
    # cdiv(cdiv(L, dcp), B)
    context = ceil_div(demand.context, demand.dcp) if spec.sharded else demand.context
    return ceil_div(context, spec.block_size)


def _sliding_blocks(spec: Spec, demand: Demand) -> int:
    # cdiv(min(window - 1 + retained + in flight, L), B) + 1: the window may start inside a block.
    if spec.sharded and demand.dcp > 1:
        raise EngineRefusal("DCP not support sliding window.")
    held = spec.window - 1 + spec.retained + demand.in_flight_tokens
    return ceil_div(min(held, demand.context), spec.block_size) + 1


def _chunked_blocks(spec: Spec, demand: Demand) -> int:
    # cdiv(min(chunk + in flight, L), B)
    return ceil_div(min(spec.window + demand.in_flight_tokens, demand.context), spec.block_size)


def _cross_blocks(spec: Spec, demand: Demand) -> int:
    return ceil_div(demand.encoder_tokens, spec.block_size)


def _state_blocks(spec: Spec, demand: Demand) -> int:
    if demand.state_mode == "align":
        return 2 + spec.draft_states + spec.checkpoint_states
    if demand.state_mode == "all":
        return ceil_div(demand.context, spec.block_size) + spec.draft_states
    if demand.state_mode == "length":
        return ceil_div(demand.context, spec.block_size)
    return 1 + spec.draft_states


_BLOCKS = {
    FULL: _full_blocks,
    MLA: _full_blocks,
    INDEXER: _full_blocks,
    SLIDING: _sliding_blocks,
    CHUNKED: _chunked_blocks,
    CROSS: _cross_blocks,
    STATE: _state_blocks,
}
