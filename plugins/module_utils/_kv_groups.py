# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Layers to cache groups, as vLLM's `vllm.v1.core.kv_cache_utils` does it.

All groups draw blocks from one pool, so a block is as large as the largest group. Private to this collection.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import NamedTuple

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import (
    CHUNKED,
    CROSS,
    FULL,
    INDEXER,
    MLA,
    SLIDING,
    STATE,
    Demand,
    EngineRefusal,
    Spec,
    ceil_div,
    round_up,
)

_PLAIN_ATTENTION = (FULL, SLIDING, CHUNKED, CROSS)
_ATTENTION = (*_PLAIN_ATTENTION, MLA, INDEXER)
# The layout in which a block holds all layers side by side.
PACKED_LAYOUT = "BLHNC"


class Entry(NamedTuple):
    """One cache in the engine: its layer (draft layers follow the last layer of the model), its spec and its name.

    A plan makes hundreds of them, and a tuple is made quickest.
    """

    layer: int
    spec: Spec
    draft: bool = False
    name: str = ""


@dataclass(frozen=True)
class Group:
    """Layers that share a block table. `mixed` groups hold layers with pages of different sizes."""

    entries: tuple[Entry, ...]
    kinds: tuple[Spec, ...]
    page: int
    mixed: bool

    def request_blocks(self, demand: Demand) -> int:
        """Pool blocks that one request takes in this group."""
        return max(spec.request_blocks(demand) for spec in self.kinds)


def _distinct(entries: Sequence[Entry]) -> tuple[Spec, ...]:
    # Most layers share one object, which is quicker to tell than its fields.
    objects = {id(entry.spec): entry.spec for entry in entries}
    return tuple(dict.fromkeys(objects.values()))


def make_group(entries: Sequence[Entry], mixed: bool, kinds: tuple[Spec, ...] = ()) -> Group:
    """A group of these caches; kinds are given when the group may be empty on this rank."""
    page = sum(entry.spec.page for entry in entries)
    return Group(tuple(entries), kinds or _distinct(entries), page, mixed)


def _type_key(spec: Spec) -> tuple[Hashable, ...]:
    """What layers must have in common to share one group with pages of different sizes."""
    if spec.kind in (SLIDING, CHUNKED):
        return (spec.family, spec.block_size, spec.sharded, spec.window)
    if spec.kind == STATE:
        return (spec.family, spec.block_size, spec.draft_states, spec.checkpoint_states, spec.page)
    return (spec.family, spec.block_size, spec.sharded)


def _is_one_type(entries: Sequence[Entry]) -> bool:
    return len({_type_key(spec) for spec in _distinct(entries)}) == 1


def _promoted(entries: Sequence[Entry]) -> list[Entry]:
    """Windows treated as full attention, which is what a disabled hybrid manager allocates."""
    if _is_one_type(entries):
        return list(entries)
    full_sizes = {entry.spec.block_size for entry in entries if entry.spec.family == FULL}
    if not full_sizes:
        raise EngineRefusal("Failed to promote local KV cache specs to one unified type.")
    block_size = full_sizes.pop() if len(full_sizes) == 1 else 0
    promoted = []
    for entry in entries:
        spec = entry.spec
        if spec.kind in (SLIDING, CHUNKED):
            size = block_size or spec.block_size
            padded = None if spec.padded_page is None else max(spec.padded_page, spec.token_bytes * size)
            spec = replace(spec, kind=FULL, block_size=size, window=0, retained=0, padded_page=padded)
        promoted.append(entry._replace(spec=spec))
    if not _is_one_type(promoted):
        raise EngineRefusal("Failed to promote local KV cache specs to one unified type.")
    return promoted


class _PagesDiffer(Exception):
    """Pages cannot be brought to one size; the text is vLLM's."""


def _unified(entry: Entry, largest: int, dialect: Dialect) -> Spec:
    """One layer brought to the largest page: more tokens in a block where that divides, else padding."""
    spec = entry.spec
    if spec.page == largest:
        return spec
    if spec.kind == STATE and dialect.pads_state_pages:
        return spec.with_page(largest)
    if largest % spec.page == 0 and spec.kind != STATE:
        return spec.with_block_size(spec.block_size * (largest // spec.page))
    padded = {"no": (), "all": _ATTENTION, "plain": _PLAIN_ATTENTION}[dialect.pads_attention_pages]
    if spec.kind in padded:
        return spec.with_page(largest)
    if dialect.pads_attention_pages == "no":
        raise _PagesDiffer(
            "The page size of the layer is not divisible by the maximum page size. Cannot unify by adjusting "
            "block_size."
        )
    allowed = "non-MLA attention layers."
    if dialect.pads_attention_pages == "all":
        allowed = (
            "attention layers whose backend indexes KV pages by the block stride (indexes_kv_by_block_stride is True)."
        )
    raise _PagesDiffer(
        f"Layer {entry.name}: page size is not divisible by the maximum page size and cannot be padded. Padding is "
        f"only supported for {allowed}"
    )


def _unify_pages(entries: Sequence[Entry], dialect: Dialect) -> list[Entry]:
    largest = max(entry.spec.page for entry in entries)
    cache: dict[Spec, Spec] = {}
    unified = []
    for entry in entries:
        if entry.spec not in cache:
            cache[entry.spec] = _unified(entry, largest, dialect)
        unified.append(entry._replace(spec=cache[entry.spec]))
    return unified


def _bucketed(entries: Sequence[Entry], dialect: Dialect) -> list[Group]:
    """Buckets of equal layers, cut into groups of one size; the rest of a bucket is padding."""
    buckets: dict[Spec, list[Entry]] = {}
    for entry in entries:
        buckets.setdefault(entry.spec, []).append(entry)
    sizes = [len(bucket) for bucket in buckets.values()]
    size = max(sizes) if max(sizes) * 100 < min(sizes) * dialect.group_ratio_percent else min(sizes)
    groups: list[Group] = []
    for bucket in buckets.values():
        count = ceil_div(len(bucket), size)
        # Every count-th layer, so that a pipeline stage holds layers of every group.
        groups.extend(make_group(bucket[first::count], mixed=False) for first in range(count))
    return groups


def _fallback(entries: Sequence[Entry]) -> list[Group]:
    """MLA beside sliding windows whose pages do not fit: full allocation for all."""
    kinds = {entry.spec.kind for entry in entries}
    if not (kinds & {MLA, INDEXER} and SLIDING in kinds) or CHUNKED in kinds:
        return []
    try:
        return [make_group(_promoted(entries), mixed=True)]
    except EngineRefusal:
        return []


def _closest_divisor(counts: Sequence[int], lowest: int) -> int:
    """The size of parts, `lowest` at least, that pads the counts least when each is cut into such parts."""
    best, least = lowest, -1
    for size in range(lowest, max(counts) + 1):
        padding = sum(-count % size for count in counts)
        if least < 0 or padding <= least:
            best, least = size, padding
    return best


@dataclass(frozen=True)
class _Bucket:
    """Layers of one type in a packed layout, by the size of their pages. Balanced: as many of each size."""

    entries: tuple[Entry, ...]
    by_page: tuple[tuple[Entry, ...], ...]

    @property
    def balanced(self) -> bool:
        return len({len(part) for part in self.by_page}) == 1

    @property
    def repeats(self) -> int:
        return max(len(part) for part in self.by_page)

    def widest(self, parts: int) -> int:
        """Bytes of the largest of so many groups."""
        return sum(ceil_div(len(part), parts) * part[0].spec.page for part in self.by_page)

    def split(self, parts: int) -> list[Group]:
        """The bucket as so many groups, each with every page size."""
        if parts == 1:
            return [make_group(self.entries, mixed=True)]
        rows = list(zip(*self.by_page))
        return [make_group([entry for row in rows[n::parts] for entry in row], mixed=True) for n in range(parts)]


def _buckets(entries: Sequence[Entry]) -> list[_Bucket]:
    types: dict[tuple[Hashable, ...], list[Entry]] = {}
    for entry in entries:
        types.setdefault(_type_key(entry.spec), []).append(entry)
    buckets = []
    for members in types.values():
        pages: dict[int, list[Entry]] = {}
        for entry in members:
            pages.setdefault(entry.spec.page, []).append(entry)
        buckets.append(_Bucket(tuple(members), tuple(tuple(part) for part in pages.values())))
    return buckets


def _packed(entries: Sequence[Entry]) -> list[Group]:
    """Groups of a layout that keeps all layers of a block together, so that pages need not be brought to one size.

    Buckets with every page size equally often are cut into groups of as many repeats; recurrent layers, and windows
    where nothing repeats, are cut until they fit into the block that the other layers need anyway.
    """
    buckets = _buckets(entries)
    lowest = max([bucket.repeats for bucket in buckets if bucket.balanced and len(bucket.by_page) > 1] or [0])
    counts = [bucket.repeats for bucket in buckets if bucket.balanced]
    repeats = _closest_divisor(counts, lowest) if lowest else 0

    def parts_of(bucket: _Bucket) -> int:
        return ceil_div(bucket.repeats, repeats) if bucket.balanced and repeats else 1

    def is_state(bucket: _Bucket) -> bool:
        kind = bucket.entries[0].spec.kind
        return kind == STATE or (not repeats and kind == SLIDING)

    anchor = max(bucket.widest(len(bucket.entries) if is_state(bucket) else parts_of(bucket)) for bucket in buckets)
    groups: list[Group] = []
    for bucket in buckets:
        parts = parts_of(bucket)
        if is_state(bucket):
            fitting = max(anchor // bucket.entries[0].spec.page, 1)
            parts = max(parts, ceil_div(len(bucket.entries), fitting))
        groups.extend(bucket.split(parts))
    return groups


def group_entries(entries: Sequence[Entry], dialect: Dialect, disable_hybrid: bool, layout: str) -> list[Group]:
    """The cache groups of a whole model.

    entries: caches in the order of registration; disable_hybrid: windows are allocated as full attention;
    layout: as for `block_bytes`.
    """
    if disable_hybrid:
        entries = _promoted(entries)
    if _is_one_type(entries):
        return [make_group(entries, mixed=len(_distinct(entries)) > 1)]
    if layout == PACKED_LAYOUT and len({entry.spec.page for entry in entries}) > 1:
        return _packed(entries)
    try:
        unified = _unify_pages(entries, dialect)
    except _PagesDiffer as error:
        fallback = _fallback(entries) if dialect.version >= (0, 28) else []
        if not fallback:
            raise EngineRefusal(str(error)) from None
        return fallback
    return _bucketed(unified, dialect)


def split_drafts(entries: Sequence[Entry]) -> list[Group]:
    """The fork's replicated draft: the model in one group, its draft layers, not dealt out by DCP, in another."""
    own = [entry for entry in entries if not entry.draft]
    drafts = [entry._replace(spec=replace(entry.spec, sharded=False)) for entry in entries if entry.draft]
    return [make_group(part, mixed=True) for part in (own, drafts) if part]


def project(groups: Sequence[Group], first: int, end: int, dialect: Dialect) -> list[Group]:
    """The groups as one pipeline stage sees them, which holds the layers first..end-1."""
    projected = []
    for group in groups:
        own = [entry for entry in group.entries if first <= entry.layer < end]
        if len(own) == len(group.entries):
            projected.append(group)
        elif group.mixed and not dialect.projects_layers:
            # This version forgets to shrink such a group and divides by the page of the whole model.
            projected.append(group)
        else:
            projected.append(make_group(own, group.mixed, () if own and group.mixed else group.kinds))
    return projected


def _aligned_page(group: Group) -> int:
    if all(spec.page % spec.alignment == 0 for spec in group.kinds):
        return group.page
    return sum(round_up(entry.spec.page, entry.spec.alignment) for entry in group.entries)


def block_bytes(groups: Sequence[Group], layout: str, dialect: Dialect) -> int:
    """Bytes of one pool block: the largest group.

    layout: `LBNHC` (layer by layer) or `BLHNC`, which rounds the block up to a stride that every layer can be read by;
    0.31 does so in both.
    """
    if layout != PACKED_LAYOUT and dialect.alignment != "rows":
        return max(_aligned_page(group) for group in groups)
    held = {entry.spec for group in groups for entry in group.entries}
    return round_up(max(group.page for group in groups), _common_multiple(spec.alignment for spec in held))


def _common_multiple(numbers: Iterable[int]) -> int:
    common = 1
    for number in numbers:
        common = common * number // gcd(common, number)
    return common
